"""Check a scheduler with random traffic, on the engine's block pool and a fake model.

The rules hold for every scheduler, in whatever order it serves requests. A scheduler that is
checked ``like`` another one must also make the same plans.
"""

from collections.abc import Iterator
from dataclasses import replace

from minimal_vllm.cache.block_pool import InvariantError
from minimal_vllm.step.plan import Plan
from minimal_vllm.step.request import FinishReason
from minimal_vllm_lab.check.fake_model import expected_output
from minimal_vllm_lab.check.lesson import Broken, Lesson
from minimal_vllm_lab.check.scheduler_cases import Case, Event, known_cases, random_cases
from minimal_vllm_lab.check.scheduler_plan import StateBefore, check_plan, describe_plan
from minimal_vllm_lab.check.scheduler_record import (
    Watcher,
    check_counts,
    check_lists,
    check_rows,
)
from minimal_vllm_lab.check.scheduler_rules import (
    AHEAD,
    ALL_FINISH,
    ALL_FREED,
    BLOCK_OWNERS,
    RESET,
    SAME_PLAN,
    SEPARATE,
)
from minimal_vllm_lab.check.search import History, find_lesson, shorter_lists
from minimal_vllm_lab.check.small_engine import NAMES, MakeScheduler, SmallEngine

MAX_STEPS = 400


def check_scheduler(
    make: MakeScheduler,
    *,
    like: MakeScheduler | None = None,
    examples: int = 250,
    seed: int | None = None,
    chunked: bool = True,
) -> Lesson | None:
    """Check a scheduler, and return a lesson about a broken rule, or None if all hold.

    Args:
        make: the scheduler's class. ``make(config, pool)`` must return a new scheduler.
        like: the class of a scheduler whose plans must be matched exactly. Default: any plan that
            follows the rules is accepted.
        examples: number of random histories to try.
        seed: seed of the random cases. Default: the same cases in every run.
        chunked: whether prompts may be split. False: chunked prefill is switched off.
    """

    def run(case: Case, history: History) -> None:
        driver = _Driver(make, case, history, like)
        for event in case.events:
            driver.apply(event)
        driver.finish()

    def shorter(case: Case) -> Iterator[Case]:
        return (replace(case, events=tuple(events)) for events in shorter_lists(case.events))

    return find_lesson(
        random_cases(chunked),
        run,
        examples=examples,
        seed=seed,
        shorter=shorter,
        known=known_cases(chunked),
    )


class _Driver:
    """Apply events to a scheduler, and check the rules after each of them."""

    def __init__(
        self, make: MakeScheduler, case: Case, history: History, like: MakeScheduler | None
    ) -> None:
        self._case, self._history = case, history
        self._describe(make)
        self._neighbor = SmallEngine(make, case)
        self._neighbor.add(Event("add", (1,), 2, 0))
        self._neighbor.scheduler.schedule()
        self._lists_of_neighbor = self._neighbor.lists()
        self._engine = SmallEngine(make, case)
        self._check_neighbor(new=self._engine)
        self._watcher = Watcher(self._engine.scheduler, runs_ahead=case.runs_ahead)
        self._reference = SmallEngine(like, case) if like else None

    def _describe(self, make: MakeScheduler) -> None:
        config = self._case.config
        switches = {
            "enable_prefix_caching": config.enable_prefix_caching,
            "enable_chunked_prefill": config.enable_chunked_prefill,
        }
        options = [f"{name}=False" for name, is_on in switches.items() if not is_on]
        options += ["policy='priority'"] * (config.policy == "priority")
        self._history.note(
            f"{self._case.num_blocks} blocks of {config.block_size}; "
            f"max_num_seqs={config.max_num_seqs}, "
            f"max_num_batched_tokens={config.max_num_batched_tokens}, "
            + ", ".join([f"max_model_len={config.max_model_len}", *options])
        )
        if self._case.runs_ahead:
            self._history.note("each step is planned while the one before it still runs")
        self._history.note(f"scheduler = {getattr(make, '__name__', 'make')}(config, pool)")

    # ---- events ----------------------------------------------------------------------------------

    def apply(self, event: Event) -> None:
        """Add a request, make a step, or abort a request."""
        if event.kind == "add":
            self._add(event)
        elif event.kind == "step":
            self._step()
        elif event.kind == "no token":
            self._step(without_token=True)
        elif self._engine.requests:
            self._abort(event.number % len(self._engine.requests))

    def finish(self) -> None:
        """Step until all requests have finished, and check that nothing is left of them."""
        for _ in range(MAX_STEPS):
            if not (self._engine.scheduler.has_work or self._engine.in_flight):
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
            raise Broken(ALL_FREED, f"free blocks: {num_free}", f"{pool.num_blocks}")
        self._check_reset()

    def _add(self, event: Event) -> None:
        if len(self._engine.requests) == len(NAMES):
            return
        name = NAMES[len(self._engine.requests)]
        self._history.note(
            f"scheduler.add({name})   prompt {list(event.prompt)}, "
            f"max_tokens={event.max_tokens}"
            + f", priority={event.number}" * (self._case.config.policy == "priority")
            + (f", with {event.option}" if event.option else "")
        )
        self._watcher.arrived(self._engine.add(event))
        if self._reference:
            self._reference.add(event)

    def _abort(self, index: int) -> None:
        request = self._engine.requests[index]
        if request.finished:
            return
        self._history.note(f"scheduler.finish({request.request_id}, ABORT)   its client left")
        for engine in filter(None, (self._engine, self._reference)):
            engine.scheduler.finish(engine.requests[index], FinishReason.ABORT)
        self._watcher.aborted(request)
        self._check_state()

    # ---- a step ----------------------------------------------------------------------------------

    def _step(self, *, without_token: bool = False) -> None:
        """Plan and compute a step as the engine does, ahead of its tokens or not."""
        engine = self._engine
        if not engine.in_flight:
            self._launch()
        if self._case.runs_ahead and engine.in_flight and not self._needs_pending_tokens():
            self._launch()
        if engine.in_flight:
            self._update(without_token=without_token)

    def _needs_pending_tokens(self) -> bool:
        scheduler = self._engine.scheduler
        needs = scheduler.needs_pending_tokens()
        pending = self._engine.pending()
        for request in scheduler.running:
            if pending[request] and request.needs_history and not needs:
                raise Broken(
                    AHEAD,
                    "needs_pending_tokens() is False",
                    f"True: {request.request_id} has a grammar, and its newest token is pending",
                )
        return needs

    def _launch(self) -> None:
        engine, scheduler = self._engine, self._engine.scheduler
        if not any(not request.finished for request in engine.requests):
            return
        before = StateBefore(scheduler, engine.pending())
        self._history.note("scheduler.schedule()")
        plan = scheduler.schedule()
        self._history.lines[-1] += f" -> {describe_plan(plan)}"
        self._check_neighbor()
        check_lists(scheduler, engine.requests)
        check_plan(plan, before, self._case.config, scheduler, engine.requests)
        self._compare_plans(plan)
        if plan.scheduled or plan.preempted:
            engine.launch(plan)
            self._watcher.planned(plan)
            check_counts(scheduler, plan, engine.requests)
        self._check_state()

    def _update(self, *, without_token: bool) -> None:
        engine = self._engine
        plan, step = engine.in_flight.popleft()
        sampled = step.wait()
        if without_token and sampled:
            sampled[0] = []  # as if its logits were not finite
        alive = [request for request in plan.sampling if not request.finished]
        if plan.sampling:
            got = (
                f"{request.request_id} gets {tokens[0] if tokens else 'none'}"
                for request, tokens in zip(plan.sampling, sampled, strict=True)
            )
            self._history.note(f"scheduler.update(plan, {sampled})   {', '.join(got)}")
        engine.scheduler.update(plan, sampled)
        if self._reference:
            reference, _ = self._reference.in_flight.popleft()
            self._reference.scheduler.update(reference, sampled)
        self._check_state()
        self._check_outputs()
        self._watcher.computed(plan, alive)

    # ---- checks ----------------------------------------------------------------------------------

    def _check_state(self) -> None:
        scheduler = self._engine.scheduler
        try:
            scheduler.pool.check(request.block_table for request in scheduler.running)
        except InvariantError as error:
            raise Broken(BLOCK_OWNERS, str(error)) from None
        check_lists(scheduler, self._engine.requests)
        check_rows(scheduler, self._case.config.max_num_seqs)

    def _check_outputs(self) -> None:
        for request in self._engine.requests:
            if request.finish_reason in (FinishReason.ABORT, FinishReason.ERROR, None):
                continue
            output = request.token_ids[request.num_prompt_tokens :].tolist()
            expected = expected_output(request)
            if output != expected:
                raise Broken(
                    ALL_FINISH, f"{request.request_id} finished with {output}", f"{expected}"
                )

    def _check_neighbor(self, *, new: SmallEngine | None = None) -> None:
        """Check that another scheduler did not change, and that a new one has no requests."""
        engine, expected = (new, ([], [])) if new else (self._neighbor, self._lists_of_neighbor)
        if engine.lists() != expected:
            running, waiting = engine.lists()
            raise Broken(
                SEPARATE,
                f"{'the new' if new else 'another'} scheduler has {len(running)} running and "
                f"{len(waiting)} waiting requests",
                f"{len(expected[0])} and {len(expected[1])}",
            )

    def _check_reset(self) -> None:
        self._history.note("scheduler.add(Z), schedule() and reset(); then Z comes again")
        for _ in range(2):
            self._neighbor.add(Event("add", (2,), 2, 0))
        scheduler = self._neighbor.scheduler
        scheduler.schedule()
        scheduler.reset()
        pool = scheduler.pool
        if scheduler.has_work or pool.num_free != pool.num_blocks or pool.num_cached:
            raise Broken(
                RESET,
                f"{len(scheduler.running)} requests run, {len(scheduler.waiting)} wait, "
                f"{pool.num_free} of {pool.num_blocks} blocks are free, {pool.num_cached} cached",
                "no request, all blocks free, none cached",
            )
        request = self._neighbor.add(Event("add", (1,), 2, 0))
        plan = scheduler.schedule()
        if plan.sampling != [request]:
            raise Broken(RESET, f"the next plan is {describe_plan(plan)}", "Z token 0; admitted Z")

    def _compare_plans(self, plan: Plan) -> None:
        """Compare a plan with the one that the reference scheduler makes of the same requests."""
        engine = self._reference
        if engine is None:
            return
        expected = engine.scheduler.schedule()
        if describe_plan(plan) != describe_plan(expected):
            raise Broken(SAME_PLAN, describe_plan(plan), describe_plan(expected))
        if expected.scheduled or expected.preempted:
            engine.launch(expected)
