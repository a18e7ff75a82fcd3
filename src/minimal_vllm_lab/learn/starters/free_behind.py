"""Exercise free-behind: release the blocks that a sliding window has left behind.

The idea. A layer with a sliding window of ``w`` tokens attends to the last ``w`` tokens, the newest
one included. What lies behind them is never read again, so its blocks can go back to the pool while
the request is still running. Layers with the same window form a *group*, and each group has block
tables of its own, so that a window's blocks can go while those of the other layers stay::

    blocks of 4 tokens; the next token is 13; it sees 13 and the 5 tokens before it: 8, 9, … 13

    tokens             0-3   4-7   8-11  12-15
    window of 6         -     -     5     8       released: the first two
    no window           7     1     4     9       all are kept

A table keeps its length, so that block ``i`` still holds the tokens from ``4 * i`` on. ``NO_BLOCK``
takes the place of a released block. The entries of all groups stand side by side: with ``G``
groups, entry ``i * G + g`` of ``request.block_table`` is block ``i`` of group ``g``.

Windows move by whole blocks: while the next token is in a block, everything is kept that the
*first* token of this block sees. So something is released only when the next token begins a new
block.

What you have, in ``self``:

    windows                sliding window of each group that has one: {group: window}
    num_groups             number of groups, those without a window included
    config.block_size      tokens per block
    pool                   pool.release(blocks) takes blocks in the order of their tokens
    entry.request          the request; its status is no longer Status.RUNNING if it has ended, or
                           was preempted, while the step was computed: then it holds no blocks
    entry.start            position of the first token that the step computed
    entry.num_new          number of tokens that it computed

What to write: ``first_seen_block`` and ``release_passed``.

How it is checked: random requests arrive, run and are aborted in a small pool. A fake model notices
if a token does not find what its window sees, and a ledger knows which blocks should be held.

    minimal-vllm learn check free-behind
"""

from minimal_vllm.cache.layer_groups import NO_BLOCK
from minimal_vllm.engine.block_manager import BlockManager
from minimal_vllm.step.plan import ScheduledRequest
from minimal_vllm.step.request import Status

__all__ = ["NO_BLOCK", "MyBlocks", "Status", "first_seen_block"]


def first_seen_block(position: int, window: int | None, block_size: int) -> int:
    """Return the index of the first block that the tokens of a block, and later ones, attend to.

    Args:
        position: position of any token of the block.
        window: number of tokens that a token attends to, itself included; None: all before it.
        block_size: tokens per block.
    """
    raise NotImplementedError


class MyBlocks(BlockManager):
    """A block manager that releases passed blocks in a way of your own."""

    def release_passed(self, entry: ScheduledRequest) -> None:
        """Release the blocks that the windows have passed, after the step that ``entry`` is from.

        The next token is the one after those that the step computed. The released blocks are noted
        in ``entry.passed_blocks``, in the order of their tokens, for those who watch the engine.
        """
        raise NotImplementedError
