"""Check of the exercise free-behind: random requests on groups of layers with sliding windows."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING

from minimal_vllm.cache.block_pool import BlockPool, InvariantError
from minimal_vllm.cache.eviction import LRU
from minimal_vllm.cache.layer_groups import NO_BLOCK, Window
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.plan import Plan, ScheduledRequest
from minimal_vllm.step.request import FinishReason, Request, Status
from minimal_vllm_lab.check.fake_model import next_token
from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule
from minimal_vllm_lab.check.search import History, find_lesson, long_lists, shorter_lists

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

CHAPTER = "15-windows"
FIRST_SEEN = Rule(
    "The first block seen is that of the token window - 1 before the first token of the block.",
    "A block more is memory wasted in every request and group. A block less is read after it went "
    "to somebody else.",
    CHAPTER,
)
SEES = Rule(
    "Each token finds the keys and values of all tokens that its window sees.",
    "Released blocks are overwritten by other requests, and attention would read their text.",
    CHAPTER,
)
IN_PLACE = Rule(
    "A block table keeps its length: NO_BLOCK takes the place of a released block.",
    "Block i holds the tokens from i * block_size on. If entries were removed, all later tokens "
    "would be looked for in wrong blocks.",
    CHAPTER,
)
OWNERS = Rule(
    "A block is held exactly by the requests that have it in their block tables.",
    "A block that is in no table but not released is lost for good. One that is released but still "
    "in a table soon has two owners.",
    CHAPTER,
)
RELEASED = Rule(
    "After a step, a request holds no block that its windows have passed.",
    "These blocks are why layers are in groups: the memory of long texts.",
    CHAPTER,
)
NOTED = Rule(
    "entry.passed_blocks lists what was released, in the order of its tokens.",
    "The records of a step say what happened to each block; the view could not follow otherwise.",
    CHAPTER,
)
MAX_STEPS = 200
NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Event:
    """A request arrives, a step is made, or a request is aborted while a step is computed."""

    kind: str
    """``"add"``, ``"step"`` or ``"abort"``."""
    num_tokens: int
    """Length of the prompt of the request to add, or number of the request to abort."""
    max_tokens: int
    """Maximum number of output tokens of the request to add."""


@dataclass(frozen=True, slots=True)
class Case:
    """A small engine, and what happens to it."""

    windows: tuple[Window, ...]
    block_size: int
    budget: int
    events: tuple[Event, ...]


def check_windows(module: ModuleType, seed: int | None = None) -> Lesson | None:
    """Check ``first_seen_block`` and ``MyBlocks.release_passed``.

    Returns:
        A lesson about a broken rule, or None.
    """

    def run(case: Case, history: History) -> None:
        _check_first_seen(module, case)
        driver = _Driver(module, case, history)
        for event in case.events:
            driver.apply(event)
        driver.finish()

    def shorter(case: Case) -> Iterator[Case]:
        return (replace(case, events=tuple(each)) for each in shorter_lists(case.events))

    return find_lesson(
        _cases(), run, examples=100, seed=seed, shorter=shorter, known=_known_cases()
    )


def _known_cases() -> list[Case]:
    """Return small cases in which the most common mistakes show."""
    alone, another = Event("add", 17, 12), Event("add", 7, 20)
    step, abort = Event("step", 0, 0), Event("abort", 0, 0)
    return [
        Case((6,), 4, 16, (alone,)),
        Case((None, 6), 4, 5, (alone, another)),
        Case((None, 1), 1, 9, (alone, step, step, step, abort, step)),
        Case((None, 5, 9), 3, 16, (another, step, alone)),
    ]


def _cases() -> "SearchStrategy[Case]":
    from hypothesis import strategies as st

    event = st.builds(
        Event,
        st.sampled_from(["add", "step", "step", "step", "abort"]),
        st.sampled_from([1, 4, 7, 12, 17]),
        st.sampled_from([1, 12, 20, 30]),
    )
    return st.builds(
        Case,
        st.sampled_from([(None, 6), (6,), (None, 5, 9), (None, None, 3), (None, 1)]),
        st.sampled_from([4, 1, 3]),
        st.sampled_from([5, 16, 9]),
        long_lists(event, 24).map(tuple),
    )


def _check_first_seen(module: ModuleType, case: Case) -> None:
    for window in case.windows:
        for position in range(4 * case.block_size + 12):
            begin = position // case.block_size * case.block_size
            expected = 0 if window is None else max(begin - window + 1, 0) // case.block_size
            found = module.first_seen_block(position, window, case.block_size)
            if found != expected:
                call = f"first_seen_block({position}, {window}, {case.block_size})"
                raise Broken(FIRST_SEEN, f"{call} -> {found!r}", f"{expected}")


class _Driver:
    """A scheduler with the learner's block manager, and slots that hold the text before them."""

    def __init__(self, module: ModuleType, case: Case, history: History) -> None:
        self._case, self._history = case, history
        self._config = SchedulerConfig(
            max_model_len=48,
            max_num_batched_tokens=case.budget,
            max_num_seqs=4,
            block_size=case.block_size,
            windows=case.windows,
        )
        num_blocks = self._config.max_blocks_for(48) + 3
        self._scheduler = Scheduler(self._config, BlockPool(num_blocks, LRU()))
        self._scheduler.blocks = module.MyBlocks(self._config, self._scheduler.pool)
        self._slots: dict[int, tuple[int, ...]] = {}
        self._requests: list[Request] = []
        self._to_abort: int | None = None
        history.note(f"{num_blocks} blocks of {case.block_size} tokens; windows {case.windows}")

    def apply(self, event: Event) -> None:
        """Add a request, make a step, or choose a request to abort during the next step."""
        if event.kind == "abort":
            self._to_abort = event.num_tokens
        elif event.kind == "step":
            self._step()
        elif len(self._requests) < len(NAMES):
            self._add(event)

    def finish(self) -> None:
        """Step until all requests have ended."""
        for _ in range(MAX_STEPS):
            if not self._scheduler.has_work:
                break
            self._step()
        self._check_owners()

    def _add(self, event: Event) -> None:
        number = len(self._requests)
        tokens = array("i", [number % 3, *range(event.num_tokens - 1)])
        params = SamplingParams(max_tokens=event.max_tokens, ignore_eos=True)
        request = Request(NAMES[number], tokens, len(tokens), params, arrival=number)
        self._history.note(f"{NAMES[number]} arrives with {len(tokens)} tokens")
        self._requests.append(request)
        self._scheduler.add(request)

    def _step(self) -> None:
        if not self._scheduler.has_work:
            return
        plan = self._scheduler.schedule()
        for entry in plan.scheduled:
            last = entry.start + entry.num_new - 1
            self._history.note(
                f"{entry.request.request_id} computes tokens {entry.start} to {last}"
            )
        self._compute(plan)
        self._abort()
        before = {entry.request: list(entry.request.block_table) for entry in plan.scheduled}
        self._scheduler.update(plan, [[next_token(each.token_ids)] for each in plan.sampling])
        self._check_owners()
        for entry in plan.scheduled:
            self._check_table(entry, before[entry.request])

    def _abort(self) -> None:
        running = self._scheduler.running
        if self._to_abort is not None and running:
            request = running[self._to_abort % len(running)]
            self._history.note(f"meanwhile {request.request_id} is aborted")
            self._scheduler.finish(request, FinishReason.ABORT)
        self._to_abort = None

    # ---- the fake model --------------------------------------------------------------------------

    def _compute(self, plan: Plan) -> None:
        """Write each new token to its slots, then read what each of them sees."""
        for entry in plan.scheduled:
            for position in range(entry.start, entry.start + entry.num_new):
                for group in range(len(self._case.windows)):
                    text = tuple(entry.request.token_ids[: position + 1])
                    self._slots[self._slot(entry.request, position, group)] = (group, *text)
        for entry in plan.scheduled:
            for group, window in enumerate(self._case.windows):
                first = 0 if window is None else max(entry.start - window + 1, 0)
                for position in range(first, entry.start + entry.num_new):
                    self._read(entry.request, position, group)

    def _read(self, request: Request, position: int, group: int) -> None:
        found = self._slots.get(self._slot(request, position, group))
        if found != (group, *request.token_ids[: position + 1]):
            raise Broken(
                SEES,
                f"{request.request_id} finds something else in place of its token {position}, in "
                f"group {group} (window: {self._case.windows[group]})",
            )

    def _slot(self, request: Request, position: int, group: int) -> int:
        index, offset = divmod(position, self._case.block_size)
        block = request.block_table[index * len(self._case.windows) + group]
        if block == NO_BLOCK:
            raise Broken(
                SEES,
                f"NO_BLOCK in place of block {index} of {request.request_id}, in group {group} "
                f"(window: {self._case.windows[group]})",
                f"a block: token {position} is needed",
            )
        return block * self._case.block_size + offset

    # ---- checks ----------------------------------------------------------------------------------

    def _check_owners(self) -> None:
        tables = [
            [block for block in request.block_table if block != NO_BLOCK]
            for request in self._scheduler.running
        ]
        try:
            self._scheduler.pool.check(tables)
        except InvariantError as error:
            raise Broken(OWNERS, str(error)) from None

    def _check_table(self, entry: ScheduledRequest, before: list[int]) -> None:
        request, num_groups = entry.request, len(self._case.windows)
        if request.status is not Status.RUNNING:
            return
        table = list(request.block_table)
        if len(table) != len(before):
            raise Broken(
                IN_PLACE, f"{request.request_id}'s table has {len(table)} entries", f"{len(before)}"
            )
        for index, block in enumerate(before):
            oldest = self._oldest_seen(entry, group=index % num_groups)
            end = (index // num_groups + 1) * self._case.block_size
            self._check_entry(request, index, block, is_seen=end > oldest)
        passed = [block for block, now in zip(before, table, strict=True) if block != now]
        if list(entry.passed_blocks) != passed:
            raise Broken(NOTED, f"{list(entry.passed_blocks)}", f"{passed}")

    def _oldest_seen(self, entry: ScheduledRequest, group: int) -> int:
        """Return the position from which on a group still needs tokens after a step."""
        window, block_size = self._case.windows[group], self._case.block_size
        begin = (entry.start + entry.num_new) // block_size * block_size
        return 0 if window is None else begin - window + 1

    def _check_entry(self, request: Request, index: int, block: int, *, is_seen: bool) -> None:
        now, (row, group) = request.block_table[index], divmod(index, len(self._case.windows))
        found = f"block {row} of {request.request_id} in group {group} is {now}"
        if is_seen and now == NO_BLOCK != block:
            raise Broken(SEES, found, f"{block}: the next token's window sees it")
        if is_seen and now != block:
            raise Broken(IN_PLACE, found, f"{block}, as before")
        if not is_seen and now != NO_BLOCK:
            raise Broken(RELEASED, found, "NO_BLOCK: no later token sees it")
