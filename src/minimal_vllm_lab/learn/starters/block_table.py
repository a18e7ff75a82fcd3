"""Exercise block-table: map a position in a text to a slot in memory.

The idea. The scheduler works with requests and blocks, the model with arrays. One formula connects
them. With the block table of a request and ``S = block_size``::

    slot of position p   =   table[p // S] * S  +  p % S

    table [7, 2, 5], S = 4:   p = 6   →   table[1] = 2, offset 2   →   slot 10

The new tokens of all requests are concatenated in one array, and ``row[t]`` is the index of the
request that token ``t`` belongs to. The block tables are rows of one array, padded with 0 to the
length of the longest table.

What to write: ``pad_block_tables``, ``slots`` and ``write_to_cache``. Loops over tokens are far too
slow, because a step has thousands of tokens. Index with whole arrays of NumPy or PyTorch instead.

How it is checked: random requests with scattered blocks, compared with the formula, slot by slot.

    minimal-vllm learn check block-table
"""

import numpy as np
from torch import Tensor

from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.step.batch import Int32Array, IntArray
from minimal_vllm.step.request import Request


def pad_block_tables(requests: list[Request]) -> Int32Array:
    """Return the block tables of all requests as one array, padded with 0.

    Args:
        requests: ``block_table`` of each request is an ``array('i')``.

    Returns:
        int32 ``[R, longest table]``, one row per request.
    """
    raise NotImplementedError


def slots(
    block_tables: Int32Array, row: IntArray, positions: IntArray, block_size: int
) -> IntArray:
    """Return the slots for the keys and values of tokens: ``block * block_size + offset``.

    Args:
        block_tables: int32 ``[R, longest table]``, padded with 0.
        row: ``[T]``, index of the request that each token belongs to.
        positions: ``[T]``, position of each token in its request.
        block_size: tokens per block.

    Returns:
        int64 ``[T]``.
    """
    raise NotImplementedError


def write_to_cache(k: Tensor, v: Tensor, cache: LayerCache, slots: Tensor) -> None:
    """Write the new keys and values to their slots.

    Args:
        k: the keys, ``[T, K, D]``.
        v: the values, ``[T, K, D]``.
        cache: ``key`` and ``value``, each ``[B, K, S, D]``, changed in place.
        slots: int64 ``[T]``, the slot of each token.
    """
    raise NotImplementedError
