"""An eviction strategy that evicts from the wrong end of the queue."""

from minimal_vllm.cache.eviction import LRU


class MostRecent(LRU):
    """An LRU queue that evicts the most recently used block first."""

    def evict(self) -> int:
        """Remove and return the block that was inserted last."""
        return self._released.popitem()[0]
