"""Paged attention of requests that compute many tokens: the kernel of prompts.

The new tokens of a request are cut into tiles; one program computes one tile for one query head,
walking over all keys up to its last token, in the paged cache. What was cached before, by an
earlier chunk or for another request with the same prefix, is not told from what is new::

    keys →     0 … context … │ new tokens
    tile 0     ████████████████▙              ▙ diagonal: a token does not see those behind it
    tile 1     ████████████████████▙
    tile 2     ████████████████████████▙

The longest tiles come first, so that the last ones to run are short (Dao, *FlashAttention-2*, 2023,
for the loop; the tail is the classic one of scheduling by longest processing time).

FLOPs: ``4 * D`` per query head and visible pair of tokens; keys and values come from the L2 cache
for all tiles and query heads but the first, so that the tensor cores' rate is the floor.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.attention.kernels.decode import LEAST_ROWS, LOG2_E
from minimal_vllm.attention.kernels.softmax import take_keys
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.launch import launch_options, wait_for_previous

TILE_TOKENS = 128
"""Tokens of a tile."""


@dataclass(frozen=True, slots=True)
class PrefillWork:
    """The tiles of a step, as the kernel wants them."""

    tiles: Tensor
    """``[tiles, 4]`` int32. Of each tile: its request's row in ``block_tables``; the row of ``q``
    that is its first token; how many tokens it has, at most ``TILE_TOKENS``; and the first one's
    place in its request."""
    block_tables: Tensor
    """``[R, most blocks]`` int32."""


def prefill_attention(
    q: Tensor,
    cache: LayerCache,
    work: PrefillWork,
    scale: float,
    window: int | None,
    out: Tensor,
) -> None:
    """Attend over the cache, causally, with the tokens of all tiles.

    Args:
        q: ``[T, H, D]``.
        cache: one layer's, with the new tokens' keys and values.
        work: which token is where.
        scale: what the scores are multiplied by.
        window: a token sees so many tokens, itself included; None: all before it.
        out: ``[T, H, D]``, of which the tiles' rows are written.
    """
    _, num_kv_heads, block_size, head_dim = cache.key.shape
    num_heads = q.shape[1]
    wide = q.dtype == torch.float32
    _prefill_kernel[(num_heads, len(work.tiles))](
        q,
        cache.key,
        cache.value,
        out,
        work.tiles,
        work.block_tables,
        scale * LOG2_E,
        window or 0,
        q.stride(0),
        work.block_tables.stride(0),
        H=num_heads,
        K=num_kv_heads,
        D=head_dim,
        S=block_size,
        TOKENS=TILE_TOKENS,
        DIMS=max(triton.next_power_of_2(head_dim), LEAST_ROWS),
        KEYS=16 if wide else 64,
        WINDOWED=window is not None,
        PRECISION="ieee" if wide else "tf32",
        num_warps=4,
        num_stages=2 if wide else 3,
        **launch_options(q),
    )


@triton.jit(do_not_specialize=["window", "table_stride"])
def _prefill_kernel(
    q,
    key,
    value,
    out,
    tiles,
    block_tables,
    scale,
    window,
    q_stride,
    table_stride,
    H: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    S: tl.constexpr,
    TOKENS: tl.constexpr,
    DIMS: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOWED: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_previous(EARLY)
    head, tile = tl.program_id(0), tl.program_id(1)
    kv_head = head // (H // K)
    row, dim = tl.arange(0, TOKENS), tl.arange(0, DIMS)
    tiles += tile * 4
    num_tokens = tl.load(tiles + 2)
    is_real = (row < num_tokens)[:, None] & (dim < D)[None, :]
    q_row = tl.load(tiles + 1).to(tl.int64) + row
    q_tile = tl.load(
        q + q_row[:, None] * q_stride + head * D + dim[None, :], mask=is_real, other=0.0
    )
    first = tl.load(tiles + 3)
    query_position = first + row
    end = first + num_tokens
    table = block_tables + tl.load(tiles).to(tl.int64) * table_stride
    key += kv_head * (S * D)
    value += kv_head * (S * D)

    peak = tl.full([TOKENS], -float("inf"), tl.float32)
    total = tl.zeros([TOKENS], tl.float32)
    mean = tl.zeros([TOKENS, DIMS], tl.float32)
    # Keys that all rows see need no mask: those before the tile's first token, in whole steps.
    seen_by_all = 0 if WINDOWED else (first + 1) // KEYS * KEYS
    for start in range(0, seen_by_all, KEYS):
        peak, total, mean = _attend(
            q_tile, key, value, table, start, query_position, end, window, scale,
            peak, total, mean, K, D, S, DIMS, KEYS, False, False, PRECISION,
        )  # fmt: skip
    if WINDOWED:
        seen_by_all = tl.maximum(first - window + 1, 0) // KEYS * KEYS
    for start in range(seen_by_all, end, KEYS):
        peak, total, mean = _attend(
            q_tile, key, value, table, start, query_position, end, window, scale,
            peak, total, mean, K, D, S, DIMS, KEYS, True, WINDOWED, PRECISION,
        )  # fmt: skip
    mean = mean / total[:, None]
    place = q_row[:, None] * (H * D) + head * D + dim[None, :]
    tl.store(out + place, mean.to(out.dtype.element_ty), mask=is_real)


@triton.jit
def _attend(
    q_tile,
    key,
    value,
    table,
    start,
    query_position,
    end,
    window,
    scale,
    peak,
    total,
    mean,
    K: tl.constexpr,
    D: tl.constexpr,
    S: tl.constexpr,
    DIMS: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Take ``KEYS`` more keys into the running softmax."""
    dim = tl.arange(0, DIMS)
    position = start + tl.arange(0, KEYS)
    exists = position < end if MASKED else position >= 0
    block = tl.load(table + position // S, mask=exists, other=0).to(tl.int64)
    place = (block * (K * S * D) + (position % S) * D)[:, None] + dim[None, :]
    is_key = exists[:, None] & (dim < D)[None, :]
    visible = exists[None, :]
    if MASKED:
        distance = query_position[:, None] - position[None, :]
        visible = distance >= 0
        if WINDOWED:  # a row may then not see any of the first keys
            visible = visible & (distance < window)
    return take_keys(
        q_tile, key, value, place, is_key, visible, scale,
        peak, total, mean, MASKED, WINDOWED, PRECISION,
    )  # fmt: skip
