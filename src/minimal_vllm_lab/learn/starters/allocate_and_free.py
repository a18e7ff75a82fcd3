"""Exercise allocate-and-free: hand out the blocks of the KV cache, and take them back.

The idea. The memory of the KV cache is cut into blocks of equal size. A request gets a block when
it needs one, whichever is free, and gives all of them back when it ends. No request reserves room
for tokens that may never come, and no gap between two requests is too small to be used.

    the pool's blocks      0    1    2    3    4    5
                           A    B    A    ·    B    ·        · free
    A's block table        [0, 2]
    B's block table        [1, 4]
    self._free             [5, 3]        a stack: pop() gives 3, then 5

What you have. Everything else of ``BlockPool``, in particular:

    self._free             the ids of the blocks that hold nothing, a list used as a stack
    self._references       for each block, how many requests hold it
    self._hashes           for each block, the hash of its content if it is cached, or None
    self._evictable        the cached blocks that nobody holds: .insert(block), len(…)
    self._evict()          takes the next of these out of the cache; its id
    self.num_free          how many blocks allocate could hand out now, evictable ones included

What to write: ``allocate`` and ``release``. The last case of each, a cached block, is needed from
chapter 6 on: a block that still has a hash is not free, but evictable.

How it is checked: random requests begin, grow and end. A ledger knows from the calls alone who
holds which block, and compares all that the pool says of itself.

    minimal-vllm learn check allocate-and-free
    minimal-vllm learn run allocate-and-free
"""

from collections.abc import Sequence

from minimal_vllm.cache.block_pool import BlockPool


class MyPool(BlockPool):
    """A block pool with two methods of your own."""

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` blocks for one owner: free ones first, then by eviction.

        Each then has one reference.

        Raises:
            ValueError: fewer than ``count`` blocks are free; nothing was taken.
        """
        raise NotImplementedError(
            "if count is more than self.num_free, raise ValueError; else take blocks from "
            "self._free, and when that is empty from self._evict(), and set their references to 1"
        )

    def release(self, blocks: Sequence[int]) -> None:
        """Give back one reference on each block of a table, given in the order of its tokens.

        Who has none left goes to ``self._free`` if it has no hash, or else to
        ``self._evictable``. Go through the table from its end: the tail of a text must be evicted
        before its head, without which it can't be found.
        """
        raise NotImplementedError(
            "go through reversed(blocks), take one from each block's references, and put it where "
            "it belongs when none is left"
        )
