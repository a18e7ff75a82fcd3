"""What a scheduler must do, with the engine's own block pool and a model that finds out.

The rules hold for every scheduler, whatever its order. With ``like`` it must also make just the
plans of another one.
"""

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from minimal_vllm.cache.block_pool import BlockPool, InvariantError
from minimal_vllm.cache.eviction import LRU
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.plan import Plan
from minimal_vllm.step.request import FinishReason, Request, Status
from minimal_vllm_lab.check.fake_model import EOS, FakeModel, expected_output
from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule
from minimal_vllm_lab.check.search import History, find_lesson, long_lists, shorter_lists

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

MakeScheduler = Callable[[SchedulerConfig, BlockPool], Scheduler]

CHUNKED = "08-chunked-prefill"
BATCHING = "07-continuous-batching"
PREEMPTION = "09-preemption"

BUDGET = Rule(
    "A step computes at most max_num_batched_tokens tokens.",
    "A step takes as long as it has tokens to compute, and everybody waits for it: the budget is "
    "what bounds the time between two tokens. Buffers are made for so many.",
    CHUNKED,
)
SEATS = Rule(
    "At most max_num_seqs requests run at once.",
    "The GPU's tables have a row for each of so many.",
    BATCHING,
)
STEPS_ON = Rule(
    "Each scheduled request computes at least one token, beginning where its counter was.",
    "num_computed_tokens says for how many tokens the cache holds keys and values. A gap would "
    "never be filled; an overlap is computed twice.",
    "01-one-step",
)
SAMPLES = Rule(
    "A request samples in just the step in which its counter catches up with its tokens.",
    "Only the logits of the last token say what comes next.",
    "01-one-step",
)
NOBODY_STALLS = Rule(
    "A running request computes something in every step, or is preempted.",
    "Its user waits for the next token. Long prompts are cut into chunks of what the budget "
    "leaves, so that they never stall who is decoding.",
    CHUNKED,
)
WHOLE = Rule(
    "Without enable_chunked_prefill a prompt is computed in one step.",
    "That is what the option asks for.",
    CHUNKED,
)
ONLY_IF_NEEDED = Rule(
    "Nobody is preempted while there are blocks for all who run.",
    "All that a preempted request has computed is thrown away.",
    PREEMPTION,
)
FROM_THE_BACK = Rule(
    "Who is preempted was served after all who stay.",
    "So the first in line always finishes, its blocks become free, and the others get on. If "
    "anybody could push out anybody, two requests might do so for ever.",
    PREEMPTION,
)
NO_SWAP = Rule(
    "Nobody is admitted in a step that preempts.",
    "There were too few blocks for those who run: a new one would take the blocks that were just "
    "given up, and be the next to be preempted.",
    PREEMPTION,
)
PREEMPTED_WAITS = Rule(
    "A preempted request waits again: without blocks, its counter at 0, its tokens kept.",
    "Its keys and values are gone; prompt and output so far are computed again when it comes back.",
    PREEMPTION,
)
BOOKS = Rule(
    "A block is held by just those requests in whose block tables it is.",
    "Blocks of nobody are lost for good; a block that is free and in a table will soon have two "
    "owners.",
    "03-paging",
)
GETS_ON = Rule(
    "While anybody has something to compute, a step computes something.",
    "Else the engine turns for ever, and the users wait.",
    BATCHING,
)
ALL_FINISH = Rule(
    "Every request ends, with the tokens that it would get alone.",
    "Who else is in the batch must not be seen in an answer, and nobody may wait for ever.",
    BATCHING,
)
SAME_PLAN = Rule(
    "This step is planned as the exercise asks.",
    "Nothing is unsafe in it, but compare the two: who computes something, or comes in, and should "
    "not, or the other way round?",
)
GIVES_BACK = Rule(
    "When all have ended, all blocks are free.",
    "What leaks is lost until the engine is started again.",
    "03-paging",
)
MOST_STEPS = 400
SERIAL = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Event:
    """What happens next to the scheduler."""

    kind: str
    prompt: tuple[int, ...]
    max_tokens: int
    which: int


@dataclass(frozen=True, slots=True)
class Case:
    """A small engine, and what happens to it."""

    num_blocks: int
    config: SchedulerConfig
    events: tuple[Event, ...]


def check_scheduler(
    make: MakeScheduler, *, like: MakeScheduler | None = None, examples: int = 250
) -> Lesson | None:
    """Hold a scheduler to its rules.

    Args:
        make: the scheduler's class; ``make(config, pool)`` gives a new one.
        like: one whose plans it must make.
        examples: how many histories to try.
    """

    def run(case: Case, history: History) -> None:
        play = _Play(make, case, history, like)
        for event in case.events:
            play.do(event)
        play.finish()

    def shorter(case: Case) -> Iterator[Case]:
        return (replace(case, events=tuple(events)) for events in shorter_lists(case.events))

    return find_lesson(_cases(), run, examples=examples, shorter=shorter, known=_known_cases())


def _known_cases() -> list[Case]:
    """The situations that each rule is about, as small as they can be."""
    one, two, long = (1,), (1, 2, 3), (1, 2, 3, 4, 5, 6)
    step = Event("step", one, 1, 0)
    small = SchedulerConfig(max_model_len=8, max_num_batched_tokens=4, max_num_seqs=2, block_size=2)
    urgent = replace(small, max_num_batched_tokens=3, policy="priority")
    return [
        # A third waits for a seat.
        Case(8, small, (_add(one, 1), _add(one, 4), _add(two, 2))),
        # Two grow until the blocks do not suffice.
        Case(4, small, (_add(two, 5), _add(one, 5))),
        # A long prompt goes before one that decodes.
        Case(8, urgent, (_add(one, 6, 1), step, _add(long, 2, 0))),
        # Two begin alike, one behind the other, and in one step.
        Case(8, small, (_add(long, 1), step, step, _add(long, 1), _add(long, 2))),
        # One goes away while it runs, and one while it waits.
        Case(8, small, (_add(two, 4), _add(one, 4), _add(two, 4), step, _abort(0), _abort(2))),
    ]


def _add(prompt: tuple[int, ...], max_tokens: int, priority: int = 0) -> Event:
    return Event("add", prompt, max_tokens, priority)


def _abort(which: int) -> Event:
    return Event("abort", (), 1, which)


def _cases() -> "SearchStrategy[Case]":
    from hypothesis import strategies as st

    # sampled_from, since integers() and booleans() prefer the least: little would happen.
    prompts = [(1,), (1, 2), (1, 2, 3), (1, 2, 3, 4, 5, 6), (2, 1), (1, 2, 3, 5, 5, 5, 1, 2, 3)]
    event = st.builds(
        Event,
        st.sampled_from(["add", "step", "add", "step", "step", "step", "abort"]),
        st.sampled_from(prompts),
        st.sampled_from([1, 6, 3, 4, 5, 2]),
        st.sampled_from([2, 1, 0, 3]),
    )
    return st.builds(
        _make_case,
        st.sampled_from([2, 4, 6, 8, 10, 12, 3]),
        st.sampled_from([1, 2, 3]),
        st.sampled_from([1, 2, 3, 2, 4]),
        st.sampled_from([0, 1, 0, 3]),
        st.sampled_from([False, False, False, True, False]),
        st.sampled_from([False, False, True, False]),
        st.sampled_from(["fcfs", "priority"]),
        long_lists(event, 24).map(tuple),
    )


def _make_case(
    num_blocks: int,
    block_size: int,
    max_num_seqs: int,
    spare_budget: int,
    unchunked: bool,
    uncached: bool,
    policy: Literal["fcfs", "priority"],
    events: tuple[Event, ...],
) -> Case:
    max_model_len = min(num_blocks * block_size, 16)
    least = max(max_num_seqs, max_model_len) if unchunked else max_num_seqs
    config = SchedulerConfig(
        max_model_len=max_model_len,
        max_num_batched_tokens=least + spare_budget,
        max_num_seqs=max_num_seqs,
        block_size=block_size,
        enable_prefix_caching=not uncached,
        enable_chunked_prefill=not unchunked,
        policy=policy,
    )
    fitting = tuple(replace(each, prompt=each.prompt[: max_model_len - 1]) for each in events)
    return Case(num_blocks, config, fitting)


class _Engine:
    """A scheduler with its pool, its model, and the requests that were given to it."""

    def __init__(self, make: MakeScheduler, case: Case) -> None:
        self.pool = BlockPool(case.num_blocks, LRU())
        self.scheduler = make(case.config, self.pool)
        self.model = FakeModel(case.num_blocks, case.config.block_size)
        self.requests: list[Request] = []

    def add(self, event: Event) -> Request:
        number = len(self.requests)
        request = Request(
            request_id=SERIAL[number],
            token_ids=array("i", event.prompt),
            num_prompt_tokens=len(event.prompt),
            params=SamplingParams(max_tokens=event.max_tokens),
            arrival=number,
            eos_token_ids=frozenset({EOS}),
            priority=event.which if self.scheduler.config.policy == "priority" else 0,
        )
        self.requests.append(request)
        self.scheduler.add(request)
        return request


class _Play:
    """One history."""

    def __init__(
        self, make: MakeScheduler, case: Case, history: History, like: MakeScheduler | None
    ) -> None:
        self._config, self._history = case.config, history
        self._describe(make, case)
        self._engine = _Engine(make, case)
        self._model_engine = _Engine(like, case) if like else None

    def _describe(self, make: MakeScheduler, case: Case) -> None:
        config = case.config
        on_and_off = {
            "enable_prefix_caching": config.enable_prefix_caching,
            "enable_chunked_prefill": config.enable_chunked_prefill,
        }
        options = [f"{name}=False" for name, is_on in on_and_off.items() if not is_on]
        options += ["policy='priority'"] * (config.policy == "priority")
        self._history.note(
            f"{case.num_blocks} blocks of {config.block_size}; max_num_seqs={config.max_num_seqs}, "
            f"max_num_batched_tokens={config.max_num_batched_tokens}, "
            + ", ".join([f"max_model_len={config.max_model_len}", *options])
        )
        self._history.note(f"scheduler = {getattr(make, '__name__', 'make')}(config, pool)")

    # ---- what happens ----------------------------------------------------------------------------

    def do(self, event: Event) -> None:
        """Let one thing happen."""
        if event.kind == "add":
            self._add(event)
        elif event.kind == "step":
            self._step()
        elif self._engine.requests:
            self._abort(event.which % len(self._engine.requests))

    def finish(self) -> None:
        """Step until all have ended; see that they did so rightly, and left nothing behind."""
        for _ in range(MOST_STEPS):
            if not self._engine.scheduler.has_work:
                break
            self._step()
        unfinished = [each.request_id for each in self._engine.requests if not each.finished]
        if unfinished:
            raise Broken(
                ALL_FINISH,
                f"{', '.join(unfinished)} did not end in {MOST_STEPS} steps, or has_work is False",
            )
        free, pool = self._engine.scheduler.pool.num_free, self._engine.pool
        if free != pool.num_blocks:
            raise Broken(GIVES_BACK, f"{free} are free", f"{pool.num_blocks}")

    def _add(self, event: Event) -> None:
        if len(self._engine.requests) == len(SERIAL):
            return
        name = SERIAL[len(self._engine.requests)]
        self._history.note(
            f"scheduler.add({name})   {len(event.prompt)} prompt tokens {list(event.prompt)}, "
            f"max_tokens={event.max_tokens}"
            + f", priority={event.which}"
            * (self._config.policy == "priority")
        )
        self._engine.add(event)
        if self._model_engine:
            self._model_engine.add(event)

    def _abort(self, index: int) -> None:
        request = self._engine.requests[index]
        if request.finished:
            return
        self._history.note(f"scheduler.finish({request.request_id}, ABORT)   its user went away")
        for engine in filter(None, (self._engine, self._model_engine)):
            engine.scheduler.finish(engine.requests[index], FinishReason.ABORT)
        self._check_books()

    def _step(self) -> None:
        engine, scheduler = self._engine, self._engine.scheduler
        if not any(not request.finished for request in engine.requests):
            return
        before = _Before(scheduler)
        self._history.note("scheduler.schedule()")
        plan = scheduler.schedule()
        self._history.lines[-1] += f" -> {describe_plan(plan)}"
        self._check_plan(plan, before)
        sampled = engine.model.run(plan)
        self._check_books()
        self._compare_plans(plan)
        if plan.sampling:
            got = (
                f"{r.request_id} gets {t}" for r, (t,) in zip(plan.sampling, sampled, strict=True)
            )
            self._history.note(f"scheduler.update(plan, {sampled})   {', '.join(got)}")
        scheduler.update(plan, sampled)
        self._check_books()
        self._check_ended()

    # ---- what must hold --------------------------------------------------------------------------

    def _check_plan(self, plan: Plan, before: "_Before") -> None:
        config = self._config
        num_tokens = sum(entry.num_new for entry in plan.scheduled)
        if num_tokens > config.max_num_batched_tokens:
            raise Broken(BUDGET, f"{num_tokens} tokens", f"{config.max_num_batched_tokens} at most")
        running = self._engine.scheduler.running
        if max(len(plan.scheduled), len(running)) > config.max_num_seqs:
            raise Broken(SEATS, f"{len(running)} run", f"{config.max_num_seqs} at most")
        self._check_preemptions(plan, before)
        if not plan.scheduled:
            waiting = [r.request_id for r in self._engine.requests if not r.finished]
            raise Broken(
                GETS_ON,
                f"nothing is computed; {', '.join(waiting)} wait, and "
                f"{self._engine.pool.num_free} blocks are free",
            )
        self._check_entries(plan, before)
        scheduled = {entry.request for entry in plan.scheduled}
        for request in before.running:
            if request not in scheduled and request not in plan.preempted:
                raise Broken(NOBODY_STALLS, f"{request.request_id} computes nothing")

    def _check_entries(self, plan: Plan, before: "_Before") -> None:
        for entry in plan.scheduled:
            request, end = entry.request, entry.start + entry.num_new
            name = request.request_id
            if entry.num_new < 1:
                rule = NOBODY_STALLS if request in before.running else STEPS_ON
                raise Broken(rule, f"{name} computes {entry.num_new} tokens", "at least 1")
            if request.num_computed_tokens != end:
                raise Broken(
                    STEPS_ON,
                    f"{name}'s num_computed_tokens is {request.num_computed_tokens}",
                    f"{end}: {entry.start} and {entry.num_new} more",
                )
            num_logits = 1 if end == request.num_tokens else 0
            if entry.num_logits != num_logits:
                raise Broken(
                    SAMPLES,
                    f"num_logits is {entry.num_logits} for {name}",
                    f"{num_logits}: {end} of {request.num_tokens} are computed",
                )
            if not (entry.num_logits or self._config.enable_chunked_prefill):
                raise Broken(WHOLE, f"{name} computes {end} of {request.num_tokens} tokens")

    def _check_preemptions(self, plan: Plan, before: "_Before") -> None:
        if not plan.preempted:
            return
        names = [request.request_id for request in plan.preempted]
        if before.missing <= before.free:
            raise Broken(
                ONLY_IF_NEEDED,
                f"{', '.join(names)} preempted",
                f"nobody: {before.missing} blocks more were needed, and {before.free} were free",
            )
        expected = before.running[::-1][: len(names)]
        if plan.preempted != expected:
            raise Broken(FROM_THE_BACK, f"{names}", f"{[r.request_id for r in expected]}")
        if plan.admitted:
            raise Broken(
                NO_SWAP, f"{plan.admitted[0].request_id} is admitted, {names[0]} preempted"
            )
        for request in plan.preempted:
            state = (request.status, request.num_computed_tokens, len(request.block_table))
            if state != (Status.WAITING, 0, 0):
                raise Broken(
                    PREEMPTED_WAITS,
                    f"{request.request_id} is {request.status.value}, with "
                    f"{request.num_computed_tokens} computed tokens and {len(request.block_table)} "
                    f"blocks",
                    "waiting, 0 and 0",
                )

    def _check_books(self) -> None:
        scheduler = self._engine.scheduler
        try:
            scheduler.pool.check(request.block_table for request in scheduler.running)
        except InvariantError as error:
            raise Broken(BOOKS, str(error)) from None

    def _check_ended(self) -> None:
        for request in self._engine.requests:
            if request.finish_reason in (FinishReason.ABORT, None):
                continue
            prompt = request.token_ids[: request.num_prompt_tokens]
            output = request.token_ids[request.num_prompt_tokens :].tolist()
            expected = expected_output(prompt, request.max_num_tokens)
            if output != expected:
                raise Broken(
                    ALL_FINISH,
                    f"{request.request_id} ended with {output}",
                    f"{expected}",
                )

    def _compare_plans(self, plan: Plan) -> None:
        """Hold the plan to that of the scheduler which it must be like."""
        engine = self._model_engine
        if engine is None:
            return
        expected = engine.scheduler.schedule()
        if describe_plan(plan) != describe_plan(expected):
            raise Broken(SAME_PLAN, describe_plan(plan), describe_plan(expected))
        engine.scheduler.update(expected, engine.model.run(expected))


class _Before:
    """What was the case before a step was planned."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.running = list(scheduler.running)
        self.free = scheduler.pool.num_free
        self.missing = sum(
            scheduler.config.blocks_for(request.num_tokens) - len(request.block_table)
            for request in self.running
        )


def describe_plan(plan: Plan) -> str:
    """A plan in a line: who computes which tokens, who comes in and who goes out."""
    entries = []
    for entry in plan.scheduled:
        last = entry.start + entry.num_new - 1
        tokens = f"token {last}" if entry.num_new == 1 else f"tokens {entry.start}-{last}"
        tokens = tokens if entry.num_new > 0 else "no token"
        entries.append(f"{entry.request.request_id} {tokens}")
    for name, requests in (("admitted", plan.admitted), ("preempted", plan.preempted)):
        if requests:
            entries.append(f"{name} {' '.join(request.request_id for request in requests)}")
    return "; ".join(entries) or "nothing"
