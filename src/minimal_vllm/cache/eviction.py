"""Which cached block to forget first: eviction strategies behind one small interface.

A block is *evictable* while it is cached and no request references it. The pool tells the
strategy when a block enters or leaves that state and when its content is hit; the strategy
answers one question: who goes first?

Requests release their blocks tail first, so that of one prefix the tail is older than its head.
LRU and LFU therefore evict a tail before its head. FIFO, which forgets that a head was used
again, may not: what hung on an evicted head can't be found any more and waits for its own turn.

Source of the strategies: Mattson et al., *Evaluation techniques for storage hierarchies*, 1970.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from heapq import heapify, heappop, heappush


class EvictionStrategy(ABC):
    """Orders the evictable blocks. Every operation must cost (nearly) nothing: it is per block."""

    @abstractmethod
    def insert(self, block: int) -> None:
        """``block`` became evictable: it is cached, and nobody references it any more."""

    @abstractmethod
    def remove(self, block: int) -> None:
        """``block`` is evictable no more: a request references it, or its content was dropped."""

    @abstractmethod
    def evict(self) -> int:
        """Take out the block to forget first; only called while there is one."""

    @abstractmethod
    def in_order(self) -> list[int]:
        """All evictable blocks, the next to go first; for viewers, it costs time."""

    @abstractmethod
    def __contains__(self, block: int) -> bool: ...

    @abstractmethod
    def __len__(self) -> int: ...

    def hit(self, block: int) -> None:  # noqa: B027 - a hook: most strategies need not know
        """A request found the content of ``block``, be it evictable or referenced by others."""

    def forget(self, block: int) -> None:  # noqa: B027
        """The content of ``block`` is gone: drop what is remembered of it."""


class LRU(EvictionStrategy):
    """Least recently used first: the order in which blocks were released."""

    def __init__(self) -> None:
        self._released: OrderedDict[int, None] = OrderedDict()

    def insert(self, block: int) -> None:
        """Join the queue at its young end."""
        self._released[block] = None

    def remove(self, block: int) -> None:
        """Leave the queue, wherever in it."""
        del self._released[block]

    def evict(self) -> int:
        """Leave at its old end."""
        return self._released.popitem(last=False)[0]

    def in_order(self) -> list[int]:
        """From the old end to the young one."""
        return list(self._released)

    def __contains__(self, block: int) -> bool:
        return block in self._released

    def __len__(self) -> int:
        return len(self._released)


class _SmallestKeyFirst(EvictionStrategy):
    """Gives each block a key when it is released, and evicts the smallest.

    A heap with lazy deletion: removed blocks stay in it as stale entries until they come to the
    top, or until they outnumber the live ones.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, int]] = []
        self._live: dict[int, tuple[int, int, int]] = {}
        self._releases = 0

    @abstractmethod
    def _key(self, block: int) -> tuple[int, int]:
        """The block's rank and, among equal ranks, its order."""

    def insert(self, block: int) -> None:
        """Push the block under the key that it has now."""
        self._releases += 1
        entry = (*self._key(block), block)
        self._live[block] = entry
        heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._live) + 64:
            self._heap = list(self._live.values())
            heapify(self._heap)

    def remove(self, block: int) -> None:
        """Leave a stale entry behind."""
        del self._live[block]

    def evict(self) -> int:
        """Pop until the entry is no stale one."""
        while True:
            entry = heappop(self._heap)
            block = entry[-1]
            if self._live.get(block) == entry:
                del self._live[block]
                return block

    def in_order(self) -> list[int]:
        """By key."""
        return [block for *_, block in sorted(self._live.values())]

    def __contains__(self, block: int) -> bool:
        return block in self._live

    def __len__(self) -> int:
        return len(self._live)


class FIFO(_SmallestKeyFirst):
    """First in, first out: the order in which blocks were *first* released; hits don't count."""

    def __init__(self) -> None:
        super().__init__()
        self._first_release: dict[int, int] = {}

    def _key(self, block: int) -> tuple[int, int]:
        return self._first_release.setdefault(block, self._releases), 0

    def forget(self, block: int) -> None:
        """New content starts at the end of the queue."""
        self._first_release.pop(block, None)


class LFU(_SmallestKeyFirst):
    """Least frequently used first; among equals, the least recently released."""

    def __init__(self) -> None:
        super().__init__()
        self._hits: dict[int, int] = {}

    def _key(self, block: int) -> tuple[int, int]:
        return self._hits.get(block, 0), self._releases

    def hit(self, block: int) -> None:
        """Count it; it bears on the block's key from its next release on."""
        self._hits[block] = self._hits.get(block, 0) + 1

    def forget(self, block: int) -> None:
        """New content starts with no hits."""
        self._hits.pop(block, None)


EVICTION_STRATEGIES: dict[str, type[EvictionStrategy]] = {"lru": LRU, "lfu": LFU, "fifo": FIFO}
