"""Exercise block-table: from a position in a text to a place in memory.

The idea. The scheduler thinks in requests and blocks; the model computes on arrays. Between them
is one formula. With the block table of a request and ``S = block_size``::

    slot of position p   =   table[p // S] * S  +  p % S

    table [7, 2, 5], S = 4:   p = 6   →   table[1] = 2, offset 2   →   slot 10

All requests' new tokens stand behind one another in one array; ``row[t]`` says whose token ``t``
is. The tables become one array, padded with 0 to the length of the longest.

What to write: ``pad_block_tables``, ``slots`` and ``write_to_cache``. Loops over tokens are far
too slow (a step has thousands): NumPy and PyTorch can index with whole arrays.

How it is checked: random requests with scattered blocks, compared with the formula, slot by slot.

    minimal-vllm learn check block-table
"""

import numpy as np
from torch import Tensor

from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.step.batch import Int32Array, IntArray
from minimal_vllm.step.request import Request


def pad_block_tables(requests: list[Request]) -> Int32Array:
    """Each request's ``block_table`` (an ``array('i')``) in a row, int32, padded with 0."""
    raise NotImplementedError(
        "make an array of zeros, as wide as the longest table, and fill in the rows"
    )


def slots(
    block_tables: Int32Array, row: IntArray, positions: IntArray, block_size: int
) -> IntArray:
    """Where the keys and values of tokens go: ``block * block_size + offset``, int64 ``[T]``.

    Args:
        block_tables: ``[R, most blocks]``, of all requests.
        row: ``[T]``: which of them each token belongs to.
        positions: ``[T]``: each token's place in its request.
        block_size: tokens per block.
    """
    raise NotImplementedError("index block_tables with two arrays, and use int64 for the products")


def write_to_cache(k: Tensor, v: Tensor, cache: LayerCache, slots: Tensor) -> None:
    """Store the new keys and values ``[T, K, D]`` in their slots.

    Args:
        k: the keys.
        v: the values.
        cache: ``key`` and ``value``, each ``[B, K, S, D]``, written in place.
        slots: ``[T]`` int64.
    """
    raise NotImplementedError(
        "from a slot, get block and offset; cache.key.transpose(1, 2) is a view [B, S, K, D] of "
        "the same memory, which can be indexed and assigned"
    )
