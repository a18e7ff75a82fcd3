"""Exercise eviction: forget what was used longest ago.

The idea. When a request ends, its full blocks stay in the cache: the next request may begin with
the same text. When room is needed one of them has to go. *Least recently used* bets that what was
used lately will be wanted again soon::

    released          3, then 1, then 2          the queue:   3 1 2
    a request finds 3 and uses it                             1 2
    it ends                                                   1 2 3
    room is needed: 1 goes                                    2 3

A request releases the blocks of its text from the last to the first, so that of one text the tail
goes before the head. You need not do anything for that.

What to write: all of ``MyLRU``. The pool calls ``insert`` when a cached block's last owner is gone,
``remove`` when it is used again, or its content dropped, and ``evict`` when it needs room. Each
should take the same time however many blocks there are: a pool can have a million of them. The
check does not measure it, but a list can't do that: removing from its middle moves all that comes
behind. What in ``collections`` can?

How it is checked: random histories of releases, hits and evictions, whose order is known.

    minimal-vllm learn check eviction
    minimal-vllm learn run eviction
"""

from minimal_vllm.cache.eviction import EvictionStrategy


class MyLRU(EvictionStrategy):
    """Least recently used first."""

    def __init__(self) -> None:
        raise NotImplementedError("begin with no evictable blocks")

    def insert(self, block: int) -> None:
        """``block`` became evictable: it joins the queue at its young end."""
        raise NotImplementedError("put the block at the end of the queue")

    def remove(self, block: int) -> None:
        """``block`` is evictable no more: it leaves the queue, wherever in it."""
        raise NotImplementedError("take the block out of the queue")

    def evict(self) -> int:
        """Take out the block to forget first, and return it; only called while there is one."""
        raise NotImplementedError("take out the oldest block, and return it")

    def in_order(self) -> list[int]:
        """All evictable blocks, the next to go first."""
        raise NotImplementedError("list the blocks, the oldest first")

    def __contains__(self, block: int) -> bool:
        raise NotImplementedError("say whether the block is in the queue")

    def __len__(self) -> int:
        raise NotImplementedError("say how many blocks are in the queue")
