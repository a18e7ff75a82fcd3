"""Makes a record of each step, and of what comes between them, if anyone watches."""

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import TypeAdapter

from minimal_vllm.engine.request import Request
from minimal_vllm.engine.scheduler import Plan, ScheduledRequest, Scheduler
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.trace.step_record import (
    AbortRecord,
    Record,
    Recorder,
    RequestRecord,
    ResetRecord,
    ScheduledRecord,
    StepObserver,
    StepRecord,
)

logger = logging.getLogger(__name__)


class StepWatch:
    """Called at the four moments of a step; without observers each call returns at once."""

    def __init__(self, scheduler: Scheduler, observers: Sequence[StepObserver]) -> None:
        self._scheduler = scheduler
        self._observers = observers
        self._recorders = [each for each in observers if isinstance(each, Recorder)]
        self._step = 0
        self._moments: list[float] = []
        self._aborted: Sequence[Request] = ()
        self._num_told = 0

    # ---- between two steps ----------------------------------------------------------------------

    def note_arrived(self, requests: Iterable[Request]) -> None:
        """Requests wait."""
        if self._recorders:
            now = time.monotonic()
            for request in requests:
                _tell(self._recorders, _record_request(request, now))

    def note_aborted(self, requests: Iterable[Request]) -> None:
        """Requests were ended."""
        for request in requests:
            _tell(self._recorders, AbortRecord(request.request_id))

    def note_reset(self) -> None:
        """Everything was forgotten."""
        self._num_told = 0
        _tell(self._recorders, ResetRecord())

    # ---- the moments of a step ------------------------------------------------------------------

    def begin(self) -> None:
        """A step begins."""
        self._aborted = self._scheduler.ended[self._num_told :]
        self._moments.clear()
        self.mark()

    def mark(self) -> None:
        """A part of the step is done: first the schedule, then the run."""
        if self._observers:
            self._moments.append(time.monotonic())

    def end(self, plan: Plan) -> None:
        """The step is done: tell the observers."""
        self._num_told = len(self._scheduler.ended)
        if not self._observers:
            return
        self.mark()
        record = self._make_record(plan)
        self._step += 1
        _tell(self._observers, record)

    def _make_record(self, plan: Plan) -> StepRecord:
        begun, scheduled, run, ended = self._moments
        pool, stats = self._scheduler.pool, self._scheduler.prefix_cache_stats
        return StepRecord(
            step=self._step,
            started=begun,
            schedule_seconds=scheduled - begun,
            run_seconds=run - scheduled,
            update_seconds=ended - run,
            scheduled=tuple(self._record_scheduled(entry) for entry in plan.scheduled),
            admitted=_ids(plan.admitted),
            preempted=_ids(plan.preempted),
            finished=tuple(
                (request.request_id, request.finish_reason.value)
                for request in (*self._aborted, *self._scheduler.ended)
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

    def _record_scheduled(self, entry: ScheduledRequest) -> ScheduledRecord:
        request, end = entry.request, entry.start + entry.num_new
        sampled = request.token_ids[end : end + 1] if entry.samples else None
        block_size = self._scheduler.config.block_size
        full_hashes = request.block_hashes[entry.start // block_size : end // block_size]
        return ScheduledRecord(
            request_id=request.request_id,
            start=entry.start,
            num_tokens=entry.num_new,
            cached_blocks=tuple(entry.cached_blocks),
            new_blocks=tuple(entry.new_blocks),
            sampled_token=sampled[0] if sampled else None,
            full_hashes=tuple(block_hash.hex() for block_hash in full_hashes),
        )


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
