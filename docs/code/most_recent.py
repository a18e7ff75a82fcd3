"""An eviction strategy that takes the wrong end of the queue."""

from minimal_vllm.cache.eviction import LRU


class MostRecent(LRU):
    """Like LRU, but what was used last goes first."""

    def evict(self) -> int:
        """Leave at the young end."""
        return self._released.popitem()[0]
