"""Eviction strategies, which decide which cached block is evicted first.

A block is *evictable* while it is cached and no request references it. The pool tells the strategy
when a block enters or leaves that state and when its content is hit. The strategy answers one
question: which block is evicted next?

Requests release their blocks tail first, so that the tail of a prefix is older than its head. LRU
and LFU therefore evict a tail before its head. FIFO ignores that a head was used again, and may
evict the head first: the blocks after it can then no longer be found, but stay in the pool until
they are evicted too.

Source of the strategies: Mattson et al., *Evaluation techniques for storage hierarchies*, 1970.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from heapq import heapify, heappop, heappush


class EvictionStrategy(ABC):
    """Order of the evictable blocks. The operations run per block and step: they must be cheap."""

    @abstractmethod
    def insert(self, block: int) -> None:
        """Add ``block``, which became evictable: it is cached, and no request references it."""

    @abstractmethod
    def remove(self, block: int) -> None:
        """Remove ``block``: a request references it again, or its content was dropped."""

    @abstractmethod
    def evict(self) -> int:
        """Remove and return the block to evict next. Called only while there is one."""

    @abstractmethod
    def in_order(self) -> list[int]:
        """Return all evictable blocks, the next to be evicted first. May be slow: for viewers."""

    @abstractmethod
    def __contains__(self, block: int) -> bool: ...

    @abstractmethod
    def __len__(self) -> int: ...

    def hit(self, block: int) -> None:  # noqa: B027 - a hook that most strategies don't need
        """Note that a request found the content of ``block``, evictable or referenced."""

    def forget(self, block: int) -> None:  # noqa: B027
        """Drop what is known of the content of ``block``, which is no longer cached."""


class LRU(EvictionStrategy):
    """Evict the least recently used block first: the order of release."""

    def __init__(self) -> None:
        self._released: OrderedDict[int, None] = OrderedDict()

    def insert(self, block: int) -> None:
        """Append the block to the queue."""
        self._released[block] = None

    def remove(self, block: int) -> None:
        """Take the block out of the queue."""
        del self._released[block]

    def evict(self) -> int:
        """Take the oldest block out of the queue."""
        return self._released.popitem(last=False)[0]

    def in_order(self) -> list[int]:
        """Return the queue, oldest block first."""
        return list(self._released)

    def __contains__(self, block: int) -> bool:
        return block in self._released

    def __len__(self) -> int:
        return len(self._released)


class _SmallestKeyFirst(EvictionStrategy):
    """Give each block a key when it is released, and evict the block with the smallest key.

    A heap with lazy deletion: removed blocks stay in it as stale entries until they reach the top,
    or until they outnumber the live ones.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, int]] = []
        self._live: dict[int, tuple[int, int, int]] = {}
        self._releases = 0

    @abstractmethod
    def _key(self, block: int) -> tuple[int, int]:
        """Return the block's rank and, among equal ranks, its order."""

    def insert(self, block: int) -> None:
        """Push the block with its current key."""
        self._releases += 1
        entry = (*self._key(block), block)
        self._live[block] = entry
        heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._live) + 64:
            self._heap = list(self._live.values())
            heapify(self._heap)

    def remove(self, block: int) -> None:
        """Forget the block's entry, which becomes stale."""
        del self._live[block]

    def evict(self) -> int:
        """Pop entries until one is not stale."""
        while True:
            entry = heappop(self._heap)
            block = entry[-1]
            if self._live.get(block) == entry:
                del self._live[block]
                return block

    def in_order(self) -> list[int]:
        """Return the blocks in the order of their keys."""
        return [block for *_, block in sorted(self._live.values())]

    def __contains__(self, block: int) -> bool:
        return block in self._live

    def __len__(self) -> int:
        return len(self._live)


class FIFO(_SmallestKeyFirst):
    """Evict in the order in which blocks were *first* released; hits don't count."""

    def __init__(self) -> None:
        super().__init__()
        self._first_release: dict[int, int] = {}

    def _key(self, block: int) -> tuple[int, int]:
        return self._first_release.setdefault(block, self._releases), 0

    def forget(self, block: int) -> None:
        """Forget the block's first release: new content starts at the end of the queue."""
        self._first_release.pop(block, None)


class LFU(_SmallestKeyFirst):
    """Evict the least frequently used block first; among equals, the least recently released."""

    def __init__(self) -> None:
        super().__init__()
        self._hits: dict[int, int] = {}

    def _key(self, block: int) -> tuple[int, int]:
        return self._hits.get(block, 0), self._releases

    def hit(self, block: int) -> None:
        """Count the hit, which changes the block's key at its next release."""
        self._hits[block] = self._hits.get(block, 0) + 1

    def forget(self, block: int) -> None:
        """Forget the block's hits: new content starts with none."""
        self._hits.pop(block, None)


EVICTION_STRATEGIES: dict[str, type[EvictionStrategy]] = {"lru": LRU, "lfu": LFU, "fifo": FIFO}
