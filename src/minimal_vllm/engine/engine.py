"""The engine: takes requests, computes them step by step, and returns their outputs.

Planning a step while the one before it runs is vLLM's asynchronous scheduling (its
``v1/core/sched/async_scheduler.py``, 2025), and SGLang's overlap scheduler (2024).
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import NamedTuple

from minimal_vllm.engine.admission import Admission
from minimal_vllm.engine.output_processor import OutputProcessor, RequestGroup
from minimal_vllm.engine.reporter import Reporter, Timing
from minimal_vllm.engine.scheduler_interface import SchedulerInterface
from minimal_vllm.outputs import OutputKind, RequestOutput
from minimal_vllm.runner.interface import DEVICE_LOST, Flight, Runner, StepResult
from minimal_vllm.sampling.sampler import Sampled
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.plan import Plan
from minimal_vllm.step.request import FinishReason
from minimal_vllm.trace.step_record import Observer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A step that was launched and has not finished."""

    plan: Plan
    flight: Flight
    times: Timing
    """Number and times of the step, kept by the ``Reporter``."""


class FailedLaunch(NamedTuple):
    """A step that could not be launched."""

    plan: Plan
    times: Timing
    error: Exception


class NothingToCompute:
    """Flight of a step that only preempts. It is recorded like any other step."""

    def wait(self) -> StepResult:
        """Return a result without tokens."""
        return StepResult(Sampled.one_each([]), [])


class Engine:
    """Serves requests, one step at a time. All methods must be called from the same thread.

    Args:
        scheduler: decides which requests compute how many tokens in each step.
        runner: computes the steps.
        admission: checks requests before they are added.
        outputs: makes the outputs that users get.
        observers: functions called with a ``StepRecord`` after each step.
        async_scheduling: whether each step is launched before the previous one has finished.
    """

    def __init__(
        self,
        scheduler: SchedulerInterface,
        runner: Runner,
        admission: Admission,
        outputs: OutputProcessor,
        observers: Sequence[Observer] = (),
        *,
        async_scheduling: bool = False,
    ) -> None:
        self.scheduler = scheduler
        self._runner = runner
        self._admission = admission
        self._outputs = outputs
        self._reporter = Reporter(scheduler, observers, runs_ahead=async_scheduling)
        self._runs_ahead = async_scheduling
        self._in_flight: deque[LaunchedStep] = deque()

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
        """Add a request, which joins the running batch as soon as there is room.

        Args:
            request_id: id of the request, unique among unfinished requests.
            prompt_token_ids: at least one token, and fewer than ``max_model_len``.
            params: how to sample, and when to stop.
            prompt: text of the prompt, returned with the outputs.
            output_kind: kind of outputs that ``step`` returns for the request.
            priority: requests with a smaller number run first; only with the ``priority`` policy.
            cache_salt: only requests with the same salt share cached blocks.

        Raises:
            ValueError: the request can't be served. Nothing was added.
        """
        if request_id in self._outputs:
            raise ValueError(f"a request {request_id!r} exists already: ids must be unique")
        if priority and self.scheduler.config.policy != "priority":
            raise ValueError("a priority needs an engine with scheduling_policy='priority'")
        requests = self._admission.make_requests(
            request_id, prompt_token_ids, params, priority, cache_salt
        )
        for request in requests:  # all have the same prompt, so the first is rejected or none is
            self.scheduler.add(request)
        self._reporter.note_arrived(requests)
        # Reuse a list's integers: making new ones takes as long as everything else here.
        tokens = prompt_token_ids if isinstance(prompt_token_ids, list) else requests[0].token_ids
        group = RequestGroup(request_id, prompt, list(tokens), output_kind)
        self._outputs.add(group, requests)

    def abort(self, request_id: str) -> RequestOutput | None:
        """Abort a request in any state and return its last output; None if the id is unknown."""
        if request_id not in self._outputs:
            return None
        requests = self._outputs.requests(request_id)
        unfinished = [request for request in requests if not request.finished]
        for request in unfinished:
            self.scheduler.finish(request, FinishReason.ABORT)
        self._reporter.note_aborted(unfinished)
        return self._outputs.make_outputs(requests)[0]

    @property
    def has_unfinished_requests(self) -> bool:
        """Whether there is work for ``step``."""
        return self.scheduler.has_work or bool(self._in_flight)

    def step(self) -> list[RequestOutput]:
        """Compute one step, and return the new outputs of its requests.

        With asynchronous scheduling, the next step is launched before this one's tokens are
        fetched, or right after if it needs them. While it runs, the CPU makes outputs and plans.

        Raises:
            ValueError: the scheduler returned an empty plan although requests are waiting.
            torch.AcceleratorError: the process can no longer use the device, so the engine is
                unusable. Any other failure only ends the requests of the failed step.
            RankFailedError: one of several ranks has failed, so the engine is unusable.
        """
        outputs: list[RequestOutput] = []
        if not self._in_flight:
            outputs += self._launch_next()
        one_runs = len(self._in_flight) == 1
        if self._runs_ahead and one_runs and not self.scheduler.needs_pending_tokens():
            outputs += self._launch_next()
        if self._in_flight:
            outputs += self._finish_oldest()
        return outputs

    def begin_early(self) -> list[RequestOutput]:
        """Launch a step while more requests are being added; return the outputs if that fails."""
        may_launch = len(self._in_flight) < 2 and not self.scheduler.needs_pending_tokens()
        return self._launch_next() if self._runs_ahead and may_launch else []

    def watch(self, put: Callable[[Callable[[], None]], None]) -> None:
        """Put a call that raises an error, to be made between steps, if the engine can't go on."""
        del put  # an engine of one process can, while that runs

    def reset(self) -> None:
        """Drop all requests and all cached blocks.

        This is necessary after a step was interrupted, for example by Ctrl-C, because blocks may be
        cached that were never computed.
        """
        self._in_flight.clear()
        self.scheduler.reset()
        self._outputs.reset()
        self._reporter.note_reset()

    def _launch_next(self) -> list[RequestOutput]:
        """Plan a step and launch it, if there is anything to compute."""
        failed = self._launch()
        return self._fail(*failed) if failed else []

    def _launch(self) -> FailedLaunch | None:
        times = self._reporter.begin()
        plan = self.scheduler.schedule()
        if not plan.scheduled:
            if self.scheduler.has_work and not self._in_flight:
                raise ValueError("the scheduler made an empty plan although requests are waiting")
            if not plan.preempted:
                return None
        self._reporter.planned(plan, times)
        try:
            flight = self._runner.launch(plan) if plan.scheduled else NothingToCompute()
        except Exception as error:
            return FailedLaunch(plan, times, error)
        self._in_flight.append(LaunchedStep(plan, flight, times))
        return None

    def _finish_oldest(self) -> list[RequestOutput]:
        """Wait for the oldest launched step, process its tokens, and keep the GPU busy."""
        step = self._in_flight.popleft()
        try:
            result = step.flight.wait()
        except Exception as error:
            return self._fail(step.plan, step.times, error)
        self._reporter.mark(step.times)
        # Requests that ended after the step was planned have already had their last outputs.
        alive = [not request.finished for request in step.plan.sampling]
        requests = list(compress(step.plan.sampling, alive))
        self.scheduler.update(step.plan, result.sampled.tokens)
        for request, stop_string, num_tokens in self._outputs.find_stop_strings(requests):
            self.scheduler.finish(request, FinishReason.STOP, stop_string, num_tokens)
        logprobs = compress(result.sampled.logprobs, alive)
        if self._runs_ahead and not self._in_flight and self.scheduler.has_work:
            self._reporter.end(step.plan, requests, step.times)  # before it tells the next plan
            failed = self._launch()
            outputs = self._outputs.of_step(requests, logprobs, result.prompt_logprobs)
            return outputs + self._fail(*failed) if failed else outputs
        outputs = self._outputs.of_step(requests, logprobs, result.prompt_logprobs)
        self._reporter.end(step.plan, requests, step.times)
        return outputs

    def _fail(self, plan: Plan, times: Timing, error: Exception) -> list[RequestOutput]:
        """End the requests of a step that failed, and drop all cached blocks.

        Blocks that the step should have filled may already be cached, so no cached block can be
        trusted.
        """
        if isinstance(error, DEVICE_LOST):
            raise error
        logger.error("A step failed; its requests end with an error", exc_info=error)
        requests = [entry.request for entry in plan.scheduled if not entry.request.finished]
        for request in requests:
            self.scheduler.fail(request, f"{type(error).__name__}: {error}")
        self.scheduler.pool.forget_all()
        outputs = self._outputs.make_outputs(requests)
        self._reporter.mark(times)
        self._reporter.end(plan, requests, times)
        return outputs
