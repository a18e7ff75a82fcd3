"""The engine: requests go in, ``step`` is called again and again, outputs come out."""

import logging
import time
from collections.abc import Sequence

from minimal_vllm.engine.admission import Admission
from minimal_vllm.engine.output_processor import OutputProcessor, RequestGroup
from minimal_vllm.engine.request import FinishReason
from minimal_vllm.engine.runner import Runner, StepResult
from minimal_vllm.engine.scheduler import Plan, Scheduler
from minimal_vllm.engine.step_watch import StepWatch
from minimal_vllm.outputs import OutputKind, RequestMetrics, RequestOutput
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.trace.step_record import StepObserver

logger = logging.getLogger(__name__)


class Engine:
    """Single-threaded: all methods are called from one thread, between steps.

    Args:
        scheduler: decides what a step computes.
        runner: computes it.
        admission: checks what users ask for.
        outputs: makes what users get.
        observers: called with a ``StepRecord`` after each step; without any, none is made.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        admission: Admission,
        outputs: OutputProcessor,
        observers: Sequence[StepObserver] = (),
    ) -> None:
        self.scheduler = scheduler
        self._runner = runner
        self._admission = admission
        self._outputs = outputs
        self._watch = StepWatch(scheduler, observers)

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        prompt: str | None = None,
        output_kind: OutputKind = OutputKind.CUMULATIVE,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> None:
        """Let a request join the running batch as soon as there is room.

        Args:
            request_id: unique among the requests that have not ended.
            prompt_token_ids: at least one, fewer than ``max_model_len``.
            params: what is asked for.
            prompt: the text of the prompt, handed back with the outputs.
            output_kind: which outputs ``step`` returns for it.
            priority: smaller goes first; only with the ``priority`` policy.
            cache_salt: only requests with the same salt share cached blocks.

        Raises:
            ValueError: it can't be served; nothing was added and all others are unharmed.
        """
        if request_id in self._outputs:
            raise ValueError(f"there is a request {request_id!r} already: ids must be unique")
        if priority and self.scheduler.config.policy != "priority":
            raise ValueError("a priority needs an engine with scheduling_policy='priority'")
        requests = self._admission.make_requests(
            request_id, prompt_token_ids, params, priority, cache_salt
        )
        for request in requests:  # they have the same prompt: it is the first that is refused
            self.scheduler.add(request)
        self._watch.note_arrived(requests)
        group = RequestGroup(
            request_id,
            prompt,
            list(prompt_token_ids),
            output_kind,
            RequestMetrics(time.monotonic()),
        )
        self._outputs.add(group, requests)

    def abort(self, request_id: str) -> RequestOutput | None:
        """End a request, whatever its state; what it has generated, or None if it is not there."""
        if request_id not in self._outputs:
            return None
        requests = [
            completion.request for completion in self._outputs.group(request_id).completions
        ]
        unfinished = [request for request in requests if not request.finished]
        for request in unfinished:
            self.scheduler.finish(request, FinishReason.ABORT)
        self._watch.note_aborted(unfinished)
        return self._outputs.make_outputs(requests)[0]

    @property
    def has_unfinished_requests(self) -> bool:
        """Whether ``step`` has anything to do."""
        return self.scheduler.has_work

    def step(self) -> list[RequestOutput]:
        """Compute some tokens of some requests; what is new, or ended, for whom."""
        if not self.has_unfinished_requests:
            return []
        self._watch.begin()
        plan = self.scheduler.schedule()
        self._watch.mark()
        outputs = self._run(plan)
        self._watch.end(plan)
        return outputs

    def reset(self) -> None:
        """Forget all requests and all that is cached.

        For when a step was left half done, by Ctrl-C say: blocks may then be cached that were
        never computed.
        """
        self.scheduler.reset()
        self._outputs.reset()
        self._watch.note_reset()

    def _run(self, plan: Plan) -> list[RequestOutput]:
        try:
            result = self._runner.run(plan)
        except Exception as error:
            logger.exception("A step failed; its requests end with an error")
            self._watch.mark()
            return self._fail(plan, error)
        self._watch.mark()
        return self._update(plan, result)

    def _update(self, plan: Plan, result: StepResult) -> list[RequestOutput]:
        sampled = result.sampled
        self.scheduler.update(plan, sampled.token_ids)
        self._outputs.add_logprobs(plan.sampling, sampled.logprobs)
        self._outputs.add_prompt_logprobs(result.prompt_logprobs)
        for request, stop_string in self._outputs.update_texts(plan.sampling):
            self.scheduler.finish(request, FinishReason.STOP, stop_string)
        return self._outputs.make_outputs(plan.sampling)

    def _fail(self, plan: Plan, error: BaseException) -> list[RequestOutput]:
        """End the requests of a step that could not be computed.

        Blocks that it should have filled may be cached already, so nothing cached can be trusted.
        """
        requests = [entry.request for entry in plan.scheduled]
        for request in requests:
            self.scheduler.fail(request, f"{type(error).__name__}: {error}")
        self.scheduler.pool.forget_all()
        return self._outputs.make_outputs(requests)
