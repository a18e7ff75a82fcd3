"""Check a scheduler with random traffic, on the engine's block pool and a fake model.

The rules hold for every scheduler, in whatever order it serves requests. A scheduler that is
checked ``like`` another one must also make the same plans.
"""

from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace

from minimal_vllm.cache.block_pool import BlockPool, InvariantError
from minimal_vllm.cache.eviction import LRU
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.plan import Plan
from minimal_vllm.step.request import FinishReason, Request
from minimal_vllm_lab.check.fake_model import EOS, FakeModel, expected_output
from minimal_vllm_lab.check.lesson import Broken, Lesson
from minimal_vllm_lab.check.scheduler_cases import Case, Event, known_cases, random_cases
from minimal_vllm_lab.check.scheduler_plan import StateBefore, check_plan, describe_plan
from minimal_vllm_lab.check.scheduler_rules import (
    ALL_FINISH,
    ALL_FREED,
    BLOCK_OWNERS,
    SAME_PLAN,
)
from minimal_vllm_lab.check.search import History, find_lesson, shorter_lists

MakeScheduler = Callable[[SchedulerConfig, BlockPool], Scheduler]

MAX_STEPS = 400
NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def check_scheduler(
    make: MakeScheduler, *, like: MakeScheduler | None = None, examples: int = 250
) -> Lesson | None:
    """Check a scheduler, and return a lesson about a broken rule, or None if all hold.

    Args:
        make: the scheduler's class. ``make(config, pool)`` must return a new scheduler.
        like: the class of a scheduler whose plans must be matched exactly. Default: any plan that
            follows the rules is accepted.
        examples: number of random histories to try.
    """

    def run(case: Case, history: History) -> None:
        driver = _Driver(make, case, history, like)
        for event in case.events:
            driver.apply(event)
        driver.finish()

    def shorter(case: Case) -> Iterator[Case]:
        return (replace(case, events=tuple(events)) for events in shorter_lists(case.events))

    return find_lesson(random_cases(), run, examples=examples, shorter=shorter, known=known_cases())


class _Engine:
    """A scheduler with its pool, a fake model, and all requests that were added."""

    def __init__(self, make: MakeScheduler, case: Case) -> None:
        self.pool = BlockPool(case.num_blocks, LRU())
        self.scheduler = make(case.config, self.pool)
        self.model = FakeModel(case.num_blocks, case.config.block_size)
        self.requests: list[Request] = []

    def add(self, event: Event) -> Request:
        number = len(self.requests)
        request = Request(
            request_id=NAMES[number],
            token_ids=array("i", event.prompt),
            num_prompt_tokens=len(event.prompt),
            params=SamplingParams(max_tokens=event.max_tokens),
            arrival=number,
            eos_token_ids=frozenset({EOS}),
            priority=event.number if self.scheduler.config.policy == "priority" else 0,
        )
        self.requests.append(request)
        self.scheduler.add(request)
        return request


class _Driver:
    """Apply events to a scheduler, and check the rules after each of them."""

    def __init__(
        self, make: MakeScheduler, case: Case, history: History, like: MakeScheduler | None
    ) -> None:
        self._config, self._history = case.config, history
        self._describe(make, case)
        self._engine = _Engine(make, case)
        self._reference = _Engine(like, case) if like else None

    def _describe(self, make: MakeScheduler, case: Case) -> None:
        config = case.config
        switches = {
            "enable_prefix_caching": config.enable_prefix_caching,
            "enable_chunked_prefill": config.enable_chunked_prefill,
        }
        options = [f"{name}=False" for name, is_on in switches.items() if not is_on]
        options += ["policy='priority'"] * (config.policy == "priority")
        self._history.note(
            f"{case.num_blocks} blocks of {config.block_size}; max_num_seqs={config.max_num_seqs}, "
            f"max_num_batched_tokens={config.max_num_batched_tokens}, "
            + ", ".join([f"max_model_len={config.max_model_len}", *options])
        )
        self._history.note(f"scheduler = {getattr(make, '__name__', 'make')}(config, pool)")

    # ---- events ----------------------------------------------------------------------------------

    def apply(self, event: Event) -> None:
        """Add a request, make a step, or abort a request."""
        if event.kind == "add":
            self._add(event)
        elif event.kind == "step":
            self._step()
        elif self._engine.requests:
            self._abort(event.number % len(self._engine.requests))

    def finish(self) -> None:
        """Step until all requests have finished, and check that no block is still held."""
        for _ in range(MAX_STEPS):
            if not self._engine.scheduler.has_work:
                break
            self._step()
        unfinished = [each.request_id for each in self._engine.requests if not each.finished]
        if unfinished:
            raise Broken(
                ALL_FINISH,
                f"{', '.join(unfinished)} did not finish within {MAX_STEPS} steps, or has_work is "
                f"False",
            )
        num_free, pool = self._engine.scheduler.pool.num_free, self._engine.pool
        if num_free != pool.num_blocks:
            raise Broken(ALL_FREED, f"{num_free} blocks are free", f"{pool.num_blocks}")

    def _add(self, event: Event) -> None:
        if len(self._engine.requests) == len(NAMES):
            return
        name = NAMES[len(self._engine.requests)]
        self._history.note(
            f"scheduler.add({name})   {len(event.prompt)} prompt tokens {list(event.prompt)}, "
            f"max_tokens={event.max_tokens}"
            + f", priority={event.number}"
            * (self._config.policy == "priority")
        )
        self._engine.add(event)
        if self._reference:
            self._reference.add(event)

    def _abort(self, index: int) -> None:
        request = self._engine.requests[index]
        if request.finished:
            return
        self._history.note(f"scheduler.finish({request.request_id}, ABORT)   its client left")
        for engine in filter(None, (self._engine, self._reference)):
            engine.scheduler.finish(engine.requests[index], FinishReason.ABORT)
        self._check_owners()

    def _step(self) -> None:
        engine, scheduler = self._engine, self._engine.scheduler
        if not any(not request.finished for request in engine.requests):
            return
        before = StateBefore(scheduler)
        self._history.note("scheduler.schedule()")
        plan = scheduler.schedule()
        self._history.lines[-1] += f" -> {describe_plan(plan)}"
        check_plan(plan, before, scheduler, engine.requests)
        sampled = engine.model.run(plan)
        self._check_owners()
        self._compare_plans(plan)
        if plan.sampling:
            got = (
                f"{r.request_id} gets {t}" for r, (t,) in zip(plan.sampling, sampled, strict=True)
            )
            self._history.note(f"scheduler.update(plan, {sampled})   {', '.join(got)}")
        scheduler.update(plan, sampled)
        self._check_owners()
        self._check_outputs()

    # ---- checks ----------------------------------------------------------------------------------

    def _check_owners(self) -> None:
        scheduler = self._engine.scheduler
        try:
            scheduler.pool.check(request.block_table for request in scheduler.running)
        except InvariantError as error:
            raise Broken(BLOCK_OWNERS, str(error)) from None

    def _check_outputs(self) -> None:
        for request in self._engine.requests:
            if request.finish_reason in (FinishReason.ABORT, None):
                continue
            prompt = request.token_ids[: request.num_prompt_tokens]
            output = request.token_ids[request.num_prompt_tokens :].tolist()
            expected = expected_output(prompt, request.max_num_tokens)
            if output != expected:
                raise Broken(
                    ALL_FINISH, f"{request.request_id} finished with {output}", f"{expected}"
                )

    def _compare_plans(self, plan: Plan) -> None:
        """Compare a plan with the one that the reference scheduler makes of the same requests."""
        engine = self._reference
        if engine is None:
            return
        expected = engine.scheduler.schedule()
        if describe_plan(plan) != describe_plan(expected):
            raise Broken(SAME_PLAN, describe_plan(plan), describe_plan(expected))
        engine.scheduler.update(expected, engine.model.run(expected))
