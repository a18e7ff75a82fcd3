"""The log of what a replica's prefix cache has evicted. Routers read it from time to time."""

from threading import Lock
from typing import Any

from minimal_vllm.cache.watcher import CachedTokens
from minimal_vllm.routing import Router

MAX_KEPT = 2000
"""Maximum number of evictions that are kept. A router that misses one forgets all that it knew of
the replica's cache."""


class EvictionLog:
    """Watches a block pool, and keeps the last evictions, numbered from 1.

    The engine's thread writes it; any thread may read it.
    """

    def __init__(self, max_kept: int = MAX_KEPT) -> None:
        self._max_kept = max_kept
        self._numbers: dict[bytes, int] = {}
        self._count = 0
        self._num_lost = 0
        self._lock = Lock()

    def stored(self, request: CachedTokens, first: int, end: int) -> None:
        """Drop the evictions of blocks that are cached again."""
        if self._numbers:
            with self._lock:
                for block_hash in request.block_hashes[first:end]:
                    self._numbers.pop(block_hash, None)

    def removed(self, block_hash: bytes) -> None:
        """Note an eviction."""
        with self._lock:
            self._count += 1
            self._numbers.pop(block_hash, None)
            self._numbers[block_hash] = self._count
            if len(self._numbers) > self._max_kept:
                self._num_lost = self._numbers.pop(next(iter(self._numbers)))

    def cleared(self) -> None:
        """Note that everything was lost."""
        with self._lock:
            self._count += 1
            self._num_lost = self._count
            self._numbers.clear()

    def report(self) -> dict[str, Any]:
        """Return the evictions, oldest first; the routers' ``EvictionReader`` reads it."""
        with self._lock:
            return {
                "num_lost": self._num_lost,
                "count": self._count,
                "evicted": list(self._numbers.items()),
            }


class EvictionReader:
    """Tells a router what replicas have evicted since their last reports.

    Args:
        router: the router to tell.
    """

    def __init__(self, router: Router[str]) -> None:
        self._router = router
        self._counts: dict[str, int] = {}

    def read(self, replica: str, report: dict[str, Any]) -> None:
        """Take in a replica's latest report, which may be one that was read before."""
        seen = self._counts.get(replica, 0)
        if report["count"] <= seen:
            return
        if report["num_lost"] > seen:
            self._router.forget_all(replica)
        new = [block_hash for block_hash, number in report["evicted"] if number > seen]
        self._router.forget(replica, new)
        self._counts[replica] = report["count"]

    def drop(self, replica: str) -> None:
        """Forget a replica that is gone."""
        self._counts.pop(replica, None)
