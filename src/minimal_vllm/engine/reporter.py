"""Reporting the engine's events to observers, as records."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from minimal_vllm.engine.scheduler_interface import SchedulerInterface
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.plan import Plan, ScheduledRequest
from minimal_vllm.step.request import FinishReason, Request, Status
from minimal_vllm.trace.step_record import (
    AbortRecord,
    Listener,
    Observer,
    PlanRecord,
    Record,
    RequestRecord,
    ResetRecord,
    ScheduledRecord,
    StepRecord,
)

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Timing:
    """Number and times of a step that has begun. The next step may begin before it ends."""

    moments: list[float] = field(default_factory=list)
    """Times at which the step began, was planned, was computed, and ended, in seconds; as many as
    have passed. Empty without observers."""
    step: int = -1
    """Number of the step; -1 until it is planned."""


class Reporter:
    """Reports requests and steps to observers. Without observers, each method returns at once.

    An observer that raises is logged, and the engine goes on.

    Args:
        scheduler: source of the state that records contain.
        observers: called with a ``StepRecord`` after each step. A ``Listener`` among them is called
            with all other records too.
        runs_ahead: whether a step is planned while the previous one runs. Listeners then get a
            ``PlanRecord`` when a step is planned.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        scheduler: SchedulerInterface,
        observers: Sequence[Observer],
        *,
        runs_ahead: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._observers = observers
        self._clock = clock
        self._listeners = [each for each in observers if isinstance(each, Listener)]
        self._tells_plans = runs_ahead and bool(self._listeners)
        self._num_planned = 0
        self._aborted: list[Request] = []  # since the last record of a step
        self._num_named: dict[Request, int] = {}  # blocks whose hashes were reported

    # ---- between two steps ----------------------------------------------------------------------

    def note_arrived(self, requests: Iterable[Request]) -> None:
        """Report requests that were added."""
        if self._listeners:
            now = self._clock()
            for request in requests:
                tell(self._listeners, _record_request(request, now))

    def note_aborted(self, requests: Iterable[Request]) -> None:
        """Report requests that were aborted, between two steps."""
        if self._observers:
            for request in requests:
                self._aborted.append(request)
                self._num_named.pop(request, None)
                tell(self._listeners, AbortRecord(request.request_id))

    def note_reset(self) -> None:
        """Report that all requests and all cached blocks were forgotten."""
        self._aborted.clear()
        self._num_named.clear()
        tell(self._listeners, ResetRecord())

    # ---- the moments of a step ------------------------------------------------------------------

    def begin(self) -> Timing:
        """Start the timing of a step."""
        times = Timing()
        self.mark(times)
        return times

    def planned(self, plan: Plan, times: Timing) -> None:
        """Number the step and report its plan. The previous step may still run."""
        self.mark(times)
        times.step = self._num_planned
        self._num_planned += 1
        if self._tells_plans:
            tell(self._listeners, self._record_plan(plan, times))

    def mark(self, times: Timing) -> None:
        """Record the time at which a part of the step has finished."""
        if self._observers:
            times.moments.append(self._clock())

    def end(self, plan: Plan, requests: Sequence[Request], times: Timing) -> None:
        """Report a step that has finished.

        Args:
            plan: plan of the step.
            requests: requests that got tokens or ended, in the plan's order.
            times: times of the step so far.
        """
        if not self._observers:
            return
        self.mark(times)
        record = self._make_record(plan, requests, times)
        self._aborted.clear()
        tell(self._observers, record)

    # ---- records --------------------------------------------------------------------------------

    def _record_plan(self, plan: Plan, times: Timing) -> PlanRecord:
        return PlanRecord(
            step=times.step,
            scheduled=self._record_scheduled(plan, is_planned=False),
            admitted=_ids(plan.admitted),
            preempted=_ids(plan.preempted),
            evicted_blocks=tuple(plan.evicted),
        )

    def _make_record(self, plan: Plan, requests: Sequence[Request], times: Timing) -> StepRecord:
        begun, scheduled, run, ended = times.moments
        pool, stats = self._scheduler.pool, self._scheduler.prefix_cache_stats
        in_order = sorted(requests, key=_ended_by_stop_string)  # these are found last
        record = StepRecord(
            step=times.step,
            started=begun,
            schedule_seconds=scheduled - begun,
            run_seconds=run - scheduled,
            update_seconds=ended - run,
            scheduled=self._record_scheduled(plan, is_planned=self._tells_plans),
            admitted=_ids(plan.admitted),
            preempted=_ids(plan.preempted),
            finished=tuple(
                (request.request_id, request.finish_reason.value)
                for request in (*self._aborted, *in_order)
                if request.finish_reason
            ),
            evicted_blocks=tuple(plan.evicted),
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting),
            num_blocks=pool.num_blocks,
            num_free_blocks=pool.num_free,
            num_cached_blocks=pool.num_cached,
            prefix_queries=stats.queries,
            prefix_hits=stats.hits,
            num_aborted=len(self._aborted),
        )
        for request in requests:
            if request.finished:
                self._num_named.pop(request, None)
        return record

    def _record_scheduled(self, plan: Plan, *, is_planned: bool) -> tuple[ScheduledRecord, ...]:
        """Record what each request did; ``is_planned``: a ``PlanRecord`` came before."""
        return tuple(self._record_entry(entry, is_planned) for entry in plan.scheduled)

    def _record_entry(self, entry: ScheduledRequest, is_planned: bool) -> ScheduledRecord:
        # Only listeners look at hashes.
        first, hashes = self._new_hashes(entry, is_planned) if self._listeners else (0, ())
        sampled = _sampled_tokens(entry)
        num_rejected = _num_rejected(entry, len(sampled))
        return ScheduledRecord(
            entry.request.request_id,
            entry.start,
            entry.num_new,
            tuple(entry.cached_blocks),
            tuple(entry.new_blocks),
            sampled,
            hashes,
            first,
            num_rejected,
            entry.num_freed_blocks,
            max(entry.num_logits - 1, 0),
            tuple(entry.passed_blocks),
        )

    def _new_hashes(self, entry: ScheduledRequest, is_planned: bool) -> tuple[int, tuple[str, ...]]:
        """Return the hashes of the blocks that became findable since the last record.

        Returns:
            Index of the first such block in the block table, and the hashes in hexadecimal.
        """
        request, config = entry.request, self._scheduler.config
        num_cached = len(entry.cached_blocks) // len(config.windows)
        if not is_planned and entry.start == num_cached * config.block_size:
            self._num_named[request] = num_cached  # it was just admitted
        end = request.num_findable_blocks
        first = self._num_named.get(request, end)
        if first == end:  # as in most steps of a decoding request
            return 0, ()
        self._num_named[request] = end
        return first, tuple(each.hex() for each in request.block_hashes[first:end])


def _sampled_tokens(entry: ScheduledRequest) -> tuple[int, ...]:
    """Return the tokens that the request took; none if they are pending, or came after its end."""
    if not entry.num_logits:
        return ()
    first = entry.start + entry.num_new - entry.num_logits + 1
    return tuple(entry.request.token_ids[first : first + entry.num_logits])


def _num_rejected(entry: ScheduledRequest, num_sampled: int) -> int:
    """Return by how many tokens the counter moved back; 0 if no token was taken yet."""
    if num_sampled == 0 or entry.request.status is not Status.RUNNING:
        return 0
    return entry.num_logits - num_sampled


def _ended_by_stop_string(request: Request) -> bool:
    return request.finish_reason is FinishReason.STOP and isinstance(request.stop_reason, str)


def tell(observers: Iterable[Any], record: Record) -> None:
    """Call each observer with a record. One that raises is logged."""
    for observer in observers:
        try:
            observer(record)
        except Exception:
            logger.exception("An observer failed; the engine goes on")


def _record_request(request: Request, now: float) -> RequestRecord:
    return RequestRecord(
        request_id=request.request_id,
        arrival=request.arrival,
        arrived=now,
        prompt_token_ids=tuple(request.token_ids),
        priority=request.priority,
        params=_PARAMS.dump_python(request.params, mode="json", exclude_defaults=True),
    )


_PARAMS = TypeAdapter(SamplingParams)


def _ids(requests: Sequence[Request]) -> tuple[str, ...]:
    return tuple(request.request_id for request in requests)
