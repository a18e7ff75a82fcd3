"""Makes a ``StepRecord`` of each step, if anyone watches."""

import logging
import time
from collections.abc import Callable, Sequence

from minimal_vllm.engine.request import Request
from minimal_vllm.engine.scheduler import Plan, ScheduledRequest, Scheduler
from minimal_vllm.trace.step_record import ScheduledRecord, StepObserver, StepRecord

logger = logging.getLogger(__name__)


class StepWatch:
    """Called at the four moments of a step; without observers each call returns at once.

    The moments of a step are kept with the step: the next one may begin before it ends.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        observers: Sequence[StepObserver],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._observers = observers
        self._clock = clock
        self._step = 0
        self._ended_between: list[Request] = []

    def note_ended(self, requests: Sequence[Request]) -> None:
        """Requests were aborted between two steps: the next record tells."""
        if self._observers:
            self._ended_between += requests

    def begin(self) -> list[float]:
        """A step begins: its moments so far."""
        return [self._clock()] if self._observers else []

    def mark(self, moments: list[float]) -> None:
        """A part of the step is done: first the schedule, then the run."""
        if self._observers:
            moments.append(self._clock())

    def end(self, plan: Plan, requests: Sequence[Request], moments: list[float]) -> None:
        """The step is done, and these requests have got something: tell the observers."""
        if not self._observers:
            return
        self.mark(moments)
        record = self._make_record(plan, requests, moments)
        self._ended_between.clear()
        self._step += 1
        for observer in self._observers:
            try:
                observer(record)
            except Exception:
                logger.exception("An observer failed; the engine goes on")

    def _make_record(
        self, plan: Plan, requests: Sequence[Request], moments: list[float]
    ) -> StepRecord:
        begun, scheduled, run, ended = moments
        pool, stats = self._scheduler.pool, self._scheduler.prefix_cache_stats
        return StepRecord(
            step=self._step,
            started=begun,
            schedule_seconds=scheduled - begun,
            run_seconds=run - scheduled,
            update_seconds=ended - run,
            scheduled=tuple(map(_record_scheduled, plan.scheduled)),
            admitted=_ids(plan.admitted),
            preempted=_ids(plan.preempted),
            finished=tuple(
                (request.request_id, request.finish_reason.value)
                for request in (*self._ended_between, *requests)
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
        )


def _record_scheduled(entry: ScheduledRequest) -> ScheduledRecord:
    end = entry.start + entry.num_new
    sampled = entry.request.token_ids[end : end + 1] if entry.samples else None
    return ScheduledRecord(
        request_id=entry.request.request_id,
        start=entry.start,
        num_tokens=entry.num_new,
        cached_blocks=tuple(entry.cached_blocks),
        new_blocks=tuple(entry.new_blocks),
        sampled_token=sampled[0] if sampled else None,
    )


def _ids(requests: Sequence[Request]) -> tuple[str, ...]:
    return tuple(request.request_id for request in requests)
