"""Cluster: replicas behind a router, driven by request arrivals and step ends."""

from collections.abc import Iterable
from heapq import heappop, heappush
from itertools import count
from math import inf

from minimal_vllm.cache.watcher import CachedTokens
from minimal_vllm.routing import Router
from minimal_vllm_lab.sim.job import Job, SimulatedRequest, make_request
from minimal_vllm_lab.sim.metrics import Metrics
from minimal_vllm_lab.sim.replica import Replica


class Cluster:
    """Event loop that advances the simulated time.

    Only requests in progress are held in memory: jobs are made as they arrive, and dropped when
    they are done.

    Args:
        replicas: idle replicas.
        router: chooses the replica for each request.
        metrics: records each request that ends or is rejected.
    """

    def __init__(self, replicas: list[Replica], router: Router[int], metrics: Metrics) -> None:
        self._replicas = replicas
        self._router = router
        self._metrics = metrics
        for index, replica in enumerate(replicas):
            # A pool of the user's may have no watchers.
            watchers = getattr(replica.scheduler.pool, "watchers", [])
            watchers.append(_TellsRouter(router, index))
        self._wakes: list[tuple[float, int]] = []
        """Heap of (time, replica index): the end of its steps, or new work for an idle replica."""
        self._wakes_at: list[float | None] = [None] * len(replicas)
        """Time of each replica's valid entry in ``_wakes``; None for an idle replica."""
        self._follow_ups: list[tuple[float, int, Job]] = []
        """Heap of (arrival, tie breaker, job): next turns of conversations."""
        self._tie_breaker = count()
        self._request_numbers = count()

    def run(self, jobs: Iterable[Job]) -> None:
        """Serve all jobs, given in order of arrival, and their follow-ups."""
        coming = iter(jobs)
        upcoming = next(coming, None)
        while True:
            fresh = upcoming.arrival if upcoming else inf
            following = self._follow_ups[0][0] if self._follow_ups else inf
            wake = self._wakes[0][0] if self._wakes else inf
            # A request that arrives exactly at the end of a step takes part in the next step.
            if wake < fresh and wake < following:
                now, index = heappop(self._wakes)
                if now == self._wakes_at[index]:
                    self._wake(now, index)
            elif following < fresh:
                self._arrive(heappop(self._follow_ups)[-1])
            elif upcoming:
                self._arrive(upcoming)
                upcoming = next(coming, None)
            else:
                return

    def _arrive(self, job: Job) -> None:
        request = make_request(job, next(self._request_numbers))
        index = self._router.choose(request)
        replica = self._replicas[index]
        try:
            replica.add(request)
        except ValueError:
            self._metrics.add_refused()
            return
        self._router.loads[index] += 1
        is_idle = self._wakes_at[index] is None
        self._set_wake(job.arrival if is_idle else replica.cut_short(job.arrival), index)

    def _set_wake(self, time: float, index: int) -> None:
        if time != self._wakes_at[index]:
            self._wakes_at[index] = time
            heappush(self._wakes, (time, index))

    def _wake(self, now: float, index: int) -> None:
        replica = self._replicas[index]
        for request in replica.end():
            self._router.loads[index] -= 1
            self._metrics.add_ended(request, now)
            self._follow_up(request, now)
        if replica.scheduler.has_work:
            self._set_wake(replica.begin(now), index)
        else:
            self._wakes_at[index] = None

    def _follow_up(self, request: SimulatedRequest, now: float) -> None:
        job = request.follow_up(request.token_ids, now) if request.follow_up else None
        if job is not None:
            heappush(self._follow_ups, (job.arrival, next(self._tie_breaker), job))


class _TellsRouter:
    """Tells a router at once what a replica's prefix cache loses."""

    def __init__(self, router: Router[int], index: int) -> None:
        self._router = router
        self._index = index

    def stored(self, request: CachedTokens, first: int, end: int) -> None:
        """Do nothing: the router knows what it has sent."""

    def removed(self, block_hash: bytes) -> None:
        self._router.forget(self._index, [block_hash])

    def cleared(self) -> None:
        self._router.forget_all(self._index)
