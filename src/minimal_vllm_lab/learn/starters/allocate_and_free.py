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

    self._free             ids of the blocks that nobody holds, a list used as a stack
    self._references       for each block, the number of requests that hold it: 0 or 1
    self.num_free          number of blocks that allocate could return

What to write: ``allocate`` and ``release``. (The engine's own do a little more: from chapter 6 on,
a block can have several owners, and keeps its content after the last one.)

How it is checked: random requests begin, grow and finish. A ledger knows from the calls alone which
request holds which block, and compares this with everything that the pool reports. Nothing is
cached: ``learn run`` switches prefix caching off.

    minimal-vllm learn check allocate-and-free
    minimal-vllm learn run allocate-and-free
"""

from collections.abc import Sequence

from minimal_vllm.cache.block_pool import BlockPool


class MyPool(BlockPool):
    """A block pool with two methods of your own."""

    def allocate(self, count: int) -> list[int]:
        """Allocate ``count`` blocks for one request, and note that each has an owner.

        ``allocate(0)`` returns an empty list.

        Raises:
            ValueError: fewer than ``count`` blocks are free. Nothing is allocated.
        """
        raise NotImplementedError

    def release(self, blocks: Sequence[int]) -> None:
        """Return the blocks of a request that has ended to the pool.

        Args:
            blocks: the block table, in the order of the tokens. Here any order of release is right;
                the engine's own releases the last block first (chapter 6).
        """
        raise NotImplementedError
