"""Makes a record of each step, and of what comes between them, if anyone watches."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from minimal_vllm.engine.scheduler_interface import SchedulerInterface
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.plan import Plan, ScheduledRequest
from minimal_vllm.step.request import FinishReason, Request
from minimal_vllm.trace.step_record import (
    AbortRecord,
    PlanRecord,
    Record,
    Recorder,
    RequestRecord,
    ResetRecord,
    ScheduledRecord,
    StepObserver,
    StepRecord,
)

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class StepTimes:
    """What is known of a step that has begun. The next one may begin before it ends."""

    moments: list[float] = field(default_factory=list)
    """When it began, was planned, and was computed."""
    step: int = -1
    """Its number, once it is planned."""


class StepWatch:
    """Called at the four moments of a step; without observers each call returns at once."""

    def __init__(
        self,
        scheduler: SchedulerInterface,
        observers: Sequence[StepObserver],
        *,
        runs_ahead: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._observers = observers
        self._clock = clock
        self._recorders = [each for each in observers if isinstance(each, Recorder)]
        self._tells_plans = runs_ahead and bool(self._recorders)
        self._num_planned = 0
        self._aborted: list[Request] = []  # since the last record of a step
        self._num_named: dict[Request, int] = {}  # blocks whose hashes were told

    # ---- between two steps ----------------------------------------------------------------------

    def note_arrived(self, requests: Iterable[Request]) -> None:
        """Requests wait."""
        if self._recorders:
            now = self._clock()
            for request in requests:
                _tell(self._recorders, _record_request(request, now))

    def note_aborted(self, requests: Iterable[Request]) -> None:
        """Requests were ended."""
        if self._observers:
            for request in requests:
                self._aborted.append(request)
                self._num_named.pop(request, None)
                _tell(self._recorders, AbortRecord(request.request_id))

    def note_reset(self) -> None:
        """Everything was forgotten."""
        self._aborted.clear()
        self._num_named.clear()
        _tell(self._recorders, ResetRecord())

    # ---- the moments of a step ------------------------------------------------------------------

    def begin(self) -> StepTimes:
        """A step begins."""
        times = StepTimes()
        self.mark(times)
        return times

    def planned(self, plan: Plan, times: StepTimes) -> None:
        """It was decided what it computes, be it that the step before it still runs."""
        self.mark(times)
        times.step = self._num_planned
        self._num_planned += 1
        if self._tells_plans:
            _tell(self._recorders, self._record_plan(plan, times))

    def mark(self, times: StepTimes) -> None:
        """A part of the step is done."""
        if self._observers:
            times.moments.append(self._clock())

    def end(self, plan: Plan, requests: Sequence[Request], times: StepTimes) -> None:
        """The step is done, and these requests have got something: tell the observers."""
        if not self._observers:
            return
        self.mark(times)
        record = self._make_record(plan, requests, times)
        self._aborted.clear()
        _tell(self._observers, record)

    # ---- records --------------------------------------------------------------------------------

    def _record_plan(self, plan: Plan, times: StepTimes) -> PlanRecord:
        return PlanRecord(
            step=times.step,
            scheduled=self._record_scheduled(plan, is_planned=False),
            admitted=_ids(plan.admitted),
            preempted=_ids(plan.preempted),
            evicted_blocks=tuple(plan.evicted),
        )

    def _make_record(self, plan: Plan, requests: Sequence[Request], times: StepTimes) -> StepRecord:
        begun, scheduled, run, ended = times.moments
        pool, stats = self._scheduler.pool, self._scheduler.prefix_cache_stats
        in_order = sorted(requests, key=_ended_by_its_text)  # text is looked at last
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
        """``is_planned``: there was a record of the plan already."""
        return tuple(self._record_entry(entry, is_planned) for entry in plan.scheduled)

    def _record_entry(self, entry: ScheduledRequest, is_planned: bool) -> ScheduledRecord:
        # Others don't look at hashes.
        first, hashes = self._new_hashes(entry, is_planned) if self._recorders else (0, ())
        return ScheduledRecord(
            entry.request.request_id,
            entry.start,
            entry.num_new,
            tuple(entry.cached_blocks),
            tuple(entry.new_blocks),
            _sampled_token(entry),
            hashes,
            first,
        )

    def _new_hashes(self, entry: ScheduledRequest, is_planned: bool) -> tuple[int, tuple[str, ...]]:
        """Of the blocks that have become findable since that was last told, from which on."""
        request, num_cached = entry.request, len(entry.cached_blocks)
        if not is_planned and entry.start == num_cached * self._scheduler.config.block_size:
            self._num_named[request] = num_cached  # it was admitted, for the first time or again
        end = request.num_findable_blocks
        first = self._num_named.get(request, end)
        if first == end:  # as in most steps of a decoding request
            return 0, ()
        self._num_named[request] = end
        return first, tuple(each.hex() for each in request.block_hashes[first:end])


def _sampled_token(entry: ScheduledRequest) -> int | None:
    """None also if it is not known yet, or came after the request's end."""
    end = entry.start + entry.num_new
    sampled = entry.request.token_ids[end : end + 1] if entry.samples else None
    return sampled[0] if sampled else None


def _ended_by_its_text(request: Request) -> bool:
    return request.finish_reason is FinishReason.STOP and isinstance(request.stop_reason, str)


def _tell(observers: Iterable[Any], record: Record) -> None:
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
