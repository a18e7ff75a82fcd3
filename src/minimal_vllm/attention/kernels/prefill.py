"""Paged attention of requests that compute many tokens: the kernel of prompts.

The new tokens of a request are cut into tiles; one program computes one tile, for all query heads
that share a kv head, walking over all keys up to its last token, in the paged cache. What was
cached before, by an earlier chunk or for another request with the same prefix, is not told from
what is new::

    keys →     0 … context … │ new tokens
    tile 0     ████████████████▙              ▙ diagonal: a token does not see those behind it
    tile 1     ████████████████████▙
    tile 2     ████████████████████████▙

The longest tiles come first, so that the last ones to run are short (Dao, *FlashAttention-2*, 2023,
for the loop; the tail is the classic one of scheduling by longest processing time). If there are
few tiles, as of the last tokens of a long prompt, their contexts are cut into pieces, as those of
the decode kernel are, so that all of the GPU's processors read.

FLOPs: ``4 * D`` per query head and visible pair of tokens; keys and values come from the L2 cache
for all tiles and query heads but the first, so that the tensor cores' rate is the floor.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.attention.kernels.decode import LEAST_ROWS, LOG2_E, Partials
from minimal_vllm.attention.kernels.softmax import (
    leave_part,
    merge_parts,
    nothing_seen,
    take_keys,
)
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.step.batch import IntArray

ROWS = 128
"""Of a tile: pairs of a token and a query head. Few tokens of many heads fill it, too."""
LEAST_PIECE = 512
"""Keys of a piece at least."""
PIECE_COLUMNS = 9
TILE, FIRST_KEY, END_KEY, ROW, TOKEN, NUM_TOKENS, POSITION, FIRST_PIECE, NUM_PIECES = range(
    PIECE_COLUMNS
)
"""Columns of the work's table, see ``PrefillWork``."""


@dataclass(frozen=True, slots=True)
class PrefillWork:
    """The pieces of a step's tiles, as the kernel wants them."""

    pieces: Tensor
    """``[pieces, 9]`` int32. Of each piece: which tile it belongs to, and which keys it has, from
    ``FIRST_KEY`` to before ``END_KEY``. Of its tile: its request's row in ``block_tables``; the row
    of ``q`` that is its first token; how many tokens it has; the first one's place in its request;
    the first of its pieces, and how many it has. A piece that there isn't is all zeros."""
    block_tables: Tensor
    """``[R, most blocks]`` int32."""
    partials: Partials
    """``[pieces * ROWS, K, D]``, with room for as many pieces as there are if any tile is cut."""
    arrivals: Tensor
    """``[at least tiles * K]`` int32, all 0: how many pieces are done. Left as it was found."""

    def first(self, num_pieces: int) -> "PrefillWork":
        """The first so many pieces of it."""
        return replace(self, pieces=self.pieces[:num_pieces])


def tokens_per_tile(num_heads: int, num_kv_heads: int) -> int:
    """How many tokens fill a tile."""
    return max(ROWS * num_kv_heads // num_heads, 1)


def wanted_tiles(num_kv_heads: int, num_processors: int) -> int:
    """With so many there are two programs per processor: nothing is cut."""
    return 2 * num_processors // num_kv_heads


def cut_tiles(
    tiles: IntArray, num_kv_heads: int, num_processors: int, *, windowed: bool
) -> IntArray:
    """Cut tiles into pieces, if there are fewer than ``wanted_tiles``: into as many more at most.

    The last piece of a tile has all keys that not all of its tokens see, so that none has a token
    that sees nothing of it.

    Args:
        tiles: ``[tiles, 4]``: the columns from ``ROW`` to ``POSITION``.
        num_kv_heads: each tile is computed by so many programs.
        num_processors: of the GPU.
        windowed: what is seen is short anyhow: nothing is cut.

    Returns:
        ``[pieces, 9]``, see ``PrefillWork``.
    """
    seen_by_all = tiles[:, POSITION - ROW]
    ends = seen_by_all + tiles[:, NUM_TOKENS - ROW]
    wanted = 0 if windowed else wanted_tiles(num_kv_heads, num_processors)
    length = max(-(-int(ends.sum()) // max(wanted, 1)), LEAST_PIECE)
    length = -(-length // LEAST_PIECE) * LEAST_PIECE
    counts = np.ones_like(ends)
    if len(tiles) < wanted:
        counts = np.maximum(-(-seen_by_all // length), 1)
    owner = np.repeat(np.arange(len(tiles)), counts)
    first = np.cumsum(counts) - counts
    index = np.arange(len(owner)) - first[owner]
    is_last = index == counts[owner] - 1
    first_key = index * length
    end_key = np.where(is_last, ends[owner], first_key + length)
    return np.column_stack((owner, first_key, end_key, tiles[owner], first[owner], counts[owner]))


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
    dims = max(triton.next_power_of_2(head_dim), LEAST_ROWS)
    keys, warps, stages = _tile(q.dtype, dims)
    _prefill_kernel[(num_kv_heads, len(work.pieces))](
        q,
        cache.key,
        cache.value,
        out,
        work.partials.out,
        work.partials.lse,
        work.pieces,
        work.block_tables,
        work.arrivals,
        scale * LOG2_E,
        window or 0,
        q.stride(0),
        work.block_tables.stride(0),
        K=num_kv_heads,
        G=q.shape[1] // num_kv_heads,
        D=head_dim,
        S=block_size,
        ROWS=ROWS,
        DIMS=dims,
        KEYS=keys,
        WINDOWED=window is not None,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=warps,
        num_stages=stages,
        **launch_options(q),
    )


def _tile(dtype: torch.dtype, dims: int) -> tuple[int, int, int]:
    """Keys per step, warps and stages of loads, by what fits into 227 KB of shared memory."""
    if dtype == torch.float32:
        return 16, 4, 2
    return (128, 8, 3) if dims <= 128 else (64, 8, 2)


@triton.jit(
    do_not_specialize=["window", "table_stride"],
    do_not_specialize_on_alignment=["block_tables"],
)
def _prefill_kernel(
    q,
    key,
    value,
    out,
    partial_out,
    partial_lse,
    pieces,
    block_tables,
    arrivals,
    scale,
    window,
    q_stride,
    table_stride,
    K: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    S: tl.constexpr,
    ROWS: tl.constexpr,
    DIMS: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOWED: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_previous(EARLY)
    kv_head, piece = tl.program_id(0), tl.program_id(1)
    row, dim = tl.arange(0, ROWS), tl.arange(0, DIMS)
    token, head = row // G, kv_head * G + row % G
    work = pieces + piece * 9  # its columns are those above
    num_tokens = tl.load(work + 5)
    if num_tokens == 0:  # there are fewer pieces than programs
        return
    is_row = token < num_tokens
    is_real = is_row[:, None] & (dim < D)[None, :]
    q_row = tl.load(work + 4).to(tl.int64) + token
    q_place = q_row * q_stride + head * D
    q_tile = tl.load(q + q_place[:, None] + dim[None, :], mask=is_real, other=0.0)
    first = tl.load(work + 6)
    query_position = first + token
    first_key, end = tl.load(work + 1), tl.load(work + 2)
    table = block_tables + tl.load(work + 3).to(tl.int64) * table_stride
    key += kv_head * (S * D)
    value += kv_head * (S * D)

    peak, total, mean = nothing_seen(ROWS, DIMS)
    # Keys that all rows see need no mask: those before the tile's first token, in whole steps.
    seen_by_all = 0 if WINDOWED else tl.minimum(first + 1, end) // KEYS * KEYS
    for start in range(first_key, seen_by_all, KEYS):
        peak, total, mean = _attend(
            q_tile, key, value, table, start, query_position, end, window, scale,
            peak, total, mean, K, D, S, DIMS, KEYS, False, False, PRECISION,
        )  # fmt: skip
    if WINDOWED:
        seen_by_all = tl.maximum(first - window + 1, 0) // KEYS * KEYS
    for start in range(tl.maximum(seen_by_all, first_key), end, KEYS):
        peak, total, mean = _attend(
            q_tile, key, value, table, start, query_position, end, window, scale,
            peak, total, mean, K, D, S, DIMS, KEYS, True, WINDOWED, PRECISION,
        )  # fmt: skip
    # Leave the partial result; who comes last merges them all: see ``decode``.
    num_pieces, first_piece = tl.load(work + 8), tl.load(work + 7)
    arrived = num_pieces - 1
    arrival = arrivals + tl.load(work) * K + kv_head
    if num_pieces > 1:
        place = (piece * ROWS + row).to(tl.int64) * K + kv_head
        arrived = leave_part(
            partial_out, partial_lse, place, arrival,
            is_row, is_real, dim, peak, total, mean, D,
        )  # fmt: skip
    if arrived < num_pieces - 1:
        return
    if num_pieces > 1:
        tl.store(arrival, 0)
        peak, total, mean = nothing_seen(ROWS, DIMS)
        place = (first_piece * ROWS + row).to(tl.int64) * K + kv_head
        peak, total, mean = merge_parts(
            partial_out, partial_lse, place, ROWS * K, num_pieces,
            is_row, is_real, dim, peak, total, mean, D, 1,
        )  # fmt: skip  # no registers are left for more at once
    mean = mean / total[:, None]
    place = q_row * (K * G * D) + head * D
    tl.store(out + place[:, None] + dim[None, :], mean.to(out.dtype.element_ty), mask=is_real)


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
