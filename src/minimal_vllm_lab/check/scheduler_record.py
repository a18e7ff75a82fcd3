"""Check what a scheduler tells: the records of its steps, as metrics, traces and the view get them.

An engine with an observer makes a record of each step from the plan. ``FollowedState`` follows the
records alone, by the rules of ``docs/trace-format.md``. What it then holds must be what the
scheduler holds.
"""

from collections import deque
from collections.abc import Iterable, Sequence

from minimal_vllm.engine.reporter import Reporter, Timing
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.step.plan import Plan, ScheduledRequest
from minimal_vllm.step.request import FinishReason, Request, Status
from minimal_vllm.trace.step_record import (
    AbortRecord,
    Listener,
    PlanRecord,
    Record,
    RequestRecord,
    StepRecord,
)
from minimal_vllm_lab.check.lesson import Broken
from minimal_vllm_lab.check.scheduler_rules import COUNTED, LISTED, ROWS, TOLD


class FollowedState(Listener):
    """State of an engine's requests and blocks, as far as its records tell.

    Attributes:
        waiting: ids of the waiting requests.
        tables: block table of each running request, by its id.
        hashes: hash of each block that the prefix cache can find.
    """

    def __init__(self) -> None:
        self.waiting: set[str] = set()
        self.tables: dict[str, list[int]] = {}
        self.hashes: dict[int, str] = {}
        self._planned_ahead: set[int] = set()  # numbers of the steps that had a PlanRecord

    def __call__(self, record: Record) -> None:
        """Follow a record of what has just happened."""
        if isinstance(record, RequestRecord):
            self.waiting.add(record.request_id)
        elif isinstance(record, AbortRecord):
            self._end(record.request_id)
        elif isinstance(record, PlanRecord):
            self._planned_ahead.add(record.step)
            self._follow_plan(record)
        elif isinstance(record, StepRecord):
            if record.step not in self._planned_ahead:
                self._follow_plan(record)
            self._follow_hashes(record)
            for request_id, reason in record.finished[record.num_aborted :]:
                self._end(request_id, forget=reason == FinishReason.ERROR)

    def _follow_plan(self, record: PlanRecord | StepRecord) -> None:
        for request_id in record.preempted:
            self.tables.pop(request_id, None)
            self.waiting.add(request_id)
        for request_id in record.admitted:
            self.waiting.discard(request_id)
            self.tables[request_id] = []
        for block in record.evicted_blocks:
            self.hashes.pop(block, None)
        for entry in record.scheduled:
            table = self.tables.setdefault(entry.request_id, [])
            table += (*entry.cached_blocks, *entry.new_blocks)
        self._follow_hashes(record)

    def _follow_hashes(self, record: PlanRecord | StepRecord) -> None:
        for entry in record.scheduled:
            full = self.tables.get(entry.request_id, [])[entry.first_full :]
            for block, block_hash in zip(full, entry.full_hashes, strict=False):
                older = [at for at, each in self.hashes.items() if each == block_hash]
                for at in older:
                    del self.hashes[at]
                self.hashes[block] = block_hash

    def _end(self, request_id: str, *, forget: bool = False) -> None:
        self.waiting.discard(request_id)
        for block in self.tables.pop(request_id, []):
            if forget:
                self.hashes.pop(block, None)


class Watcher:
    """Watches a scheduler as an engine with an observer does, and checks what it is told.

    Args:
        scheduler: the scheduler.
        runs_ahead: whether a step is planned while the one before it runs.
    """

    def __init__(self, scheduler: Scheduler, *, runs_ahead: bool) -> None:
        self._scheduler = scheduler
        self._followed = FollowedState()
        self._reporter = Reporter(scheduler, [self._followed], runs_ahead=runs_ahead)
        self._in_flight: deque[Timing] = deque()

    def arrived(self, request: Request) -> None:
        """Report a request that was added."""
        self._reporter.note_arrived([request])

    def aborted(self, request: Request) -> None:
        """Report a request that was aborted between two steps."""
        self._reporter.note_aborted([request])

    def planned(self, plan: Plan) -> None:
        """Report a plan.

        Raises:
            Broken: a field of the plan is of the wrong type.
        """
        for entry in plan.scheduled:
            _check_types(entry)
        times = self._reporter.begin()
        self._reporter.planned(plan, times)
        self._in_flight.append(times)

    def computed(self, plan: Plan, requests: Sequence[Request]) -> None:
        """Report that the oldest plan was computed and updated, and check what was told.

        Args:
            plan: the plan.
            requests: the requests that got tokens or ended.

        Raises:
            Broken: the records differ from what happened.
        """
        times = self._in_flight.popleft()
        self._reporter.mark(times)
        self._reporter.end(plan, requests, times)
        self._check_requests()
        self._check_hashes()

    def _check_requests(self) -> None:
        followed, scheduler = self._followed, self._scheduler
        running = {request.request_id: request for request in scheduler.running}
        _compare("run", followed.tables, running)
        _compare("wait", followed.waiting, [each.request_id for each in scheduler.waiting])
        for name, request in running.items():
            table = request.block_table.tolist()
            if followed.tables[name] != table:
                raise Broken(
                    TOLD,
                    f"by cached_blocks and new_blocks of its plans, {name} has the blocks "
                    f"{followed.tables[name]}",
                    f"{table}, its block_table",
                )

    def _check_hashes(self) -> None:
        told = {block: bytes.fromhex(each) for block, each in self._followed.hashes.items()}
        held = self._scheduler.pool.hashes
        if told != held:
            raise Broken(
                TOLD,
                f"by the plans, the prefix cache holds the blocks {sorted(told)}",
                f"{sorted(held)}: plan.evicted names each block that was evicted, and a request's "
                f"num_findable_blocks counts those that are stored",
            )


def _check_types(entry: ScheduledRequest) -> None:
    for field in ("cached_blocks", "new_blocks"):
        value = getattr(entry, field)
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        if not (is_list and all(type(block) is int for block in value)):
            raise Broken(
                TOLD,
                f"{field} of {entry.request.request_id} is {value!r}",
                "a list of block ids",
            )


def _compare(verb: str, told: Iterable[str], held: Iterable[str]) -> None:
    if sorted(told) != sorted(held):
        raise Broken(
            TOLD,
            f"by plan.admitted and plan.preempted, these requests {verb}: {_names(told)}",
            f"{_names(held)}",
        )


def _names(requests: Iterable[str]) -> str:
    return ", ".join(sorted(requests)) or "none"


def check_rows(scheduler: Scheduler, most: int) -> None:
    """Check that each running request has a row of its own.

    Args:
        scheduler: the scheduler.
        most: the number of rows.

    Raises:
        Broken: a row is out of range, or has two requests.
    """
    owners = dict[int, str]()
    for request in scheduler.running:
        if not 0 <= request.row < most:
            found = f"{request.request_id} has row {request.row}"
            raise Broken(ROWS, found, f"one of 0 to {most - 1}")
        if request.row in owners:
            other = owners[request.row]
            raise Broken(ROWS, f"{request.request_id} and {other} both have row {request.row}")
        owners[request.row] = request.request_id


def check_counts(scheduler: Scheduler, plan: Plan, requests: Sequence[Request]) -> None:
    """Check the counts of prompt tokens found in the prefix cache.

    Args:
        scheduler: the scheduler, after it made ``plan``.
        plan: its newest plan.
        requests: all requests that were ever added.

    Raises:
        Broken: a request's own count or the scheduler's is wrong.
    """
    for entry in plan.scheduled:
        request = entry.request
        is_new = request in plan.admitted and request.num_preemptions == 0
        if is_new and request.num_cached_tokens != entry.start:
            raise Broken(
                COUNTED,
                f"num_cached_tokens of {request.request_id} is {request.num_cached_tokens}",
                f"{entry.start}: it was admitted with as many cached tokens",
            )
    looked_up = [
        request
        for request in requests
        if request.num_cached_tokens is not None and scheduler.may_use_cache(request)
    ]
    stats = scheduler.prefix_cache_stats
    hits = sum(request.num_cached_tokens or 0 for request in looked_up)
    queries = sum(request.num_prompt_tokens for request in looked_up)
    if (stats.queries, stats.hits) != (queries, hits):
        raise Broken(
            COUNTED,
            f"prefix_cache_stats has {stats.queries} queries and {stats.hits} hits",
            f"{queries} and {hits}",
        )


def check_lists(scheduler: Scheduler, requests: Iterable[Request]) -> None:
    """Check that each unfinished request is in the list that its status names.

    Args:
        scheduler: the scheduler.
        requests: all requests that were ever added.

    Raises:
        Broken: a request is in no list, in both, or in the wrong one.
    """
    for request in requests:
        lists = [
            status.value
            for status, members in (
                (Status.RUNNING, scheduler.running),
                (Status.WAITING, scheduler.waiting),
            )
            for member in members
            if member is request
        ]
        expected = [] if request.finished else [request.status.value]
        if lists != expected:
            raise Broken(
                LISTED,
                f"{request.request_id} is in {' and in '.join(lists) or 'no list'}, and its status "
                f"is {request.status.value}",
            )
