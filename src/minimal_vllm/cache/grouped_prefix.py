"""The prefix cache of several groups of layers: which prefix can all of them go on from?

A group without a window needs all blocks of the prefix. A group with a window needs only the last
ones, which the next token sees. Where those of any group are missing, the prefix must be shorter::

    index of the block       0   1   2   3   4   5
    full                     ✓   ✓   ✓   ✓   ✓   ·     at most 5 blocks
    window of two blocks     ·   ·   ✓   ✓   ·   ·     after 5 blocks, 3 and 4 are needed: 4 is
                                                       missing; after 4, 2 and 3 are needed: a hit
    the hit                  7   1   4   9             block table of the full group
                             -   -   2   8             and of the other; its first blocks are not
                                                       needed, nor looked for
"""

from collections.abc import Sequence

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.layer_groups import (
    NO_BLOCK,
    Window,
    first_seen_block,
    num_blocks_behind,
)


def group_hash(block_hash: bytes, group: int) -> bytes:
    """Return the hash of one group's keys and values, given the hash of the tokens' content."""
    return block_hash + bytes([group]) if group else block_hash


def find_grouped_prefix(
    pool: BlockPool, hashes: Sequence[bytes], windows: Sequence[Window], block_size: int
) -> list[int]:
    """Return the longest cached prefix of ``hashes`` from which all groups can go on.

    Args:
        pool: the pool, in which each group's blocks are found by their ``group_hash``.
        hashes: hashes of the first blocks of a request.
        windows: window of each group.
        block_size: tokens per block.

    Returns:
        The beginning of a block table: for each block's tokens, one entry per group. It is
        ``NO_BLOCK`` where the group's window has passed the tokens.
    """
    length = len(hashes)
    for group, window in enumerate(windows):
        if window is None:
            names = (group_hash(each, group) for each in hashes[:length])
            length = len(pool.find_prefix(names))
    # Each token after a block that is missing in a group, and seen from there, misses it too: so
    # the hit ends before this block. From the new end, earlier blocks are seen.
    behind = {
        group: num_blocks_behind(window, block_size)
        for group, window in enumerate(windows)
        if window is not None
    }
    index = length - 1
    while index >= max(0, length - max(behind.values(), default=0)):
        seen_in = [group for group, count in behind.items() if index >= length - count]
        if any(_find(pool, hashes[index], group) == NO_BLOCK for group in seen_in):
            length = index
        index -= 1
    first_seen = [first_seen_block(length * block_size, each, block_size) for each in windows]
    return [
        _find(pool, hashes[index], group) if index >= first else NO_BLOCK
        for index in range(length)
        for group, first in enumerate(first_seen)
    ]


def _find(pool: BlockPool, block_hash: bytes, group: int) -> int:
    block = pool.find(group_hash(block_hash, group))
    return NO_BLOCK if block is None else block
