"""Exercise allocate-and-free: allocate the blocks of the KV cache, and release them.

The idea. The memory of the KV cache is divided into blocks of equal size. A request gets a free
block whenever it needs one, and releases all of its blocks when it finishes. No memory is reserved
for tokens that may never be generated, and no gap between two requests is too small to be used.

    the pool's blocks      0    1    2    3    4    5
                           A    B    A    ·    B    ·        · free
    A's block table        [0, 2]
    B's block table        [1, 4]
    self._free             [5, 3]        a stack: pop() returns 3, then 5

What you have. Everything else in ``BlockPool``, in particular:

    self._free             ids of the blocks that hold nothing, a list used as a stack
    self._references       for each block, the number of requests that hold it
    self._hashes           for each block, the hash of its content if it is cached, or None
    self._evictable        the cached blocks that no request holds: .insert(block), len(…)
    self._evict()          evicts one of these blocks, and returns its id
    self.num_free          number of blocks that allocate could return, evictable ones included

What to write: ``allocate`` and ``release``. The last case of each, a cached block, is needed from
chapter 6 on: a block that still has a hash is not free, but evictable.

How it is checked: random requests begin, grow and finish. A ledger knows from the calls alone which
request holds which block, and compares this with everything that the pool reports.

    minimal-vllm learn check allocate-and-free
    minimal-vllm learn run allocate-and-free
"""

from collections.abc import Sequence

from minimal_vllm.cache.block_pool import BlockPool


class MyPool(BlockPool):
    """A block pool with two methods of your own."""

    def allocate(self, count: int) -> list[int]:
        """Allocate ``count`` blocks for one request: free blocks first, then evicted ones.

        Sets the number of references of each block to 1.

        Raises:
            ValueError: fewer than ``count`` blocks are free. Nothing is allocated.
        """
        raise NotImplementedError(
            "if count is more than self.num_free, raise ValueError; otherwise take blocks from "
            "self._free, or from self._evict() when it is empty, and set their references to 1"
        )

    def release(self, blocks: Sequence[int]) -> None:
        """Remove one reference from each block of a block table.

        A block without references goes to ``self._free`` if it has no hash, and to
        ``self._evictable`` otherwise. Go through the table from its end: the tail of a text must be
        evicted before its head, because a tail can't be found without its head.

        Args:
            blocks: the block table, in the order of the tokens.
        """
        raise NotImplementedError(
            "go through reversed(blocks), subtract one from each block's references, and when "
            "none is left, add the block to self._free or to self._evictable"
        )
