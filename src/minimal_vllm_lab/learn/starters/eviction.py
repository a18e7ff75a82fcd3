"""Exercise eviction: evict the least recently used block.

The idea. When a request finishes, its full blocks stay in the cache, because the next request may
begin with the same text. When blocks run out, one of them is evicted. *Least recently used* bets
that recently used content will be needed again soon::

    released          3, then 1, then 2          the queue:   3 1 2
    a request finds 3 and uses it                             1 2
    the request finishes                                      1 2 3
    a block is needed: 1 is evicted                           2 3

A request releases its blocks from the last to the first, so that the tail of a text is evicted
before its head. You need not do anything for that.

What to write: all of ``MyLRU``. The pool calls ``insert`` when the last request has released a
cached block, ``remove`` when the block is used again or its content is dropped, and ``evict`` when
it needs a block. Each call should take constant time, because a pool can have a million blocks. The
check does not measure this, but a list is too slow: removing an item from its middle moves all
items after it.

How it is checked: random histories of releases, hits and evictions with a known order.

    minimal-vllm learn check eviction
    minimal-vllm learn run eviction
"""

from minimal_vllm.cache.eviction import EvictionStrategy


class MyLRU(EvictionStrategy):
    """An eviction strategy: least recently used first."""

    def __init__(self) -> None:
        raise NotImplementedError

    def insert(self, block: int) -> None:
        """Add a block that became evictable to the end of the queue."""
        raise NotImplementedError

    def remove(self, block: int) -> None:
        """Remove a block that is no longer evictable, wherever it is in the queue."""
        raise NotImplementedError

    def evict(self) -> int:
        """Remove and return the block to evict. Called only while there is one."""
        raise NotImplementedError

    def in_order(self) -> list[int]:
        """Return all evictable blocks, the next one to be evicted first."""
        raise NotImplementedError

    def __contains__(self, block: int) -> bool:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError
