"""Paged attention of requests that compute many tokens: the prefill kernel.

The new tokens of a request are cut into tiles. One program computes one tile for all query heads
that share a kv head: it walks over all keys up to the tile's last token, in the paged cache. Keys
that were cached before, by an earlier chunk or for another request with the same prefix, are
treated like new ones::

    keys →     0 … context … │ new tokens
    tile 0     ████████████████▙              ▙ diagonal: a token does not see later ones
    tile 1     ████████████████████▙
    tile 2     ████████████████████████▙

The longest tiles come first, so that the last ones to run are short (the loop: Dao,
*FlashAttention-2*, 2023; the order: scheduling by longest processing time). If there are few tiles,
as for the last tokens of a long prompt, their contexts are cut into pieces, like those of the
decode kernel, so that all of the GPU's SMs read.

FLOPs: ``4 * D`` per query head and visible pair of tokens. Keys and values come from the L2 cache
for all tiles and query heads but the first, so the floor is the rate of the tensor cores.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.attention.interface import AttentionOptions
from minimal_vllm.attention.kernels.decode import MIN_ROWS
from minimal_vllm.attention.kernels.softmax import (
    LOG2_E,
    Partials,
    as_factor,
    empty_softmax,
    leave_part,
    merge_parts,
    take_keys,
    take_sinks,
)
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.step.batch import IntArray, enumerate_runs

ROWS = 128
"""Rows per tile: pairs of a token and a query head. A few tokens of many heads fill it, too."""
MIN_PIECE = 512
"""Minimum number of keys per piece."""
MIN_TOKENS_FOR_TWO = 512
"""Minimum number of tokens of a step for which two programs share an SM."""
PIECE_COLUMNS = 9
TILE, FIRST_KEY, END_KEY, ROW, TOKEN, NUM_TOKENS, POSITION, FIRST_PIECE, NUM_PIECES = range(
    PIECE_COLUMNS
)
"""Columns of ``PrefillWork.pieces``."""


@dataclass(frozen=True, slots=True)
class PrefillWork:
    """Input of the prefill kernel, the same for all layers of a step: the pieces of its tiles."""

    pieces: Tensor
    """``[pieces, PIECE_COLUMNS]`` int32; a row of zeros is padding. For each piece: the index of
    its tile (``TILE``), and its keys, from ``FIRST_KEY`` up to, but not including, ``END_KEY``. For
    its tile: the request's row in ``block_tables`` (``ROW``), the first token's row in ``q``
    (``TOKEN``), the number of tokens, the first token's position in its request, the index of the
    tile's first piece, and the number of its pieces."""
    block_tables: Tensor
    """``[R, max blocks]`` int32: block tables of the requests."""
    partials: Partials
    """``[pieces * ROWS, K, D]``; used only if there are tiles of several pieces."""
    arrivals: Tensor
    """``[at least tiles * K]`` int32: number of finished pieces; 0 before and after the kernel."""

    def first(self, num_pieces: int) -> "PrefillWork":
        """Return the work on the first ``num_pieces`` pieces."""
        return replace(self, pieces=self.pieces[:num_pieces])


def tokens_per_tile(num_heads: int, num_kv_heads: int) -> int:
    """Return the number of tokens that fill a tile."""
    return max(ROWS * num_kv_heads // num_heads, 1)


def wanted_tiles(num_kv_heads: int, num_sms: int) -> int:
    """Return the number of tiles that gives each SM two programs, so that nothing needs cutting."""
    return 2 * num_sms // num_kv_heads


def cut_tiles(tiles: IntArray, num_kv_heads: int, num_sms: int, *, windowed: bool) -> IntArray:
    """Cut tiles into pieces, if there are fewer than ``wanted_tiles``.

    Adds at most ``wanted_tiles`` pieces. The last piece of a tile has all keys that some of the
    tile's tokens don't see; so every token sees at least one key of each piece.

    Args:
        tiles: ``[tiles, 4]``: the columns from ``ROW`` to ``POSITION``.
        num_kv_heads: number of programs that compute each tile.
        num_sms: number of the GPU's streaming multiprocessors.
        windowed: whether the layers have a sliding window. Few keys are seen then, and nothing is
            cut.

    Returns:
        ``[pieces, PIECE_COLUMNS]``; see ``PrefillWork``.
    """
    seen_by_all = tiles[:, POSITION - ROW]
    ends = seen_by_all + tiles[:, NUM_TOKENS - ROW]
    wanted = 0 if windowed else wanted_tiles(num_kv_heads, num_sms)
    length = max(-(-int(ends.sum()) // max(wanted, 1)), MIN_PIECE)
    length = -(-length // MIN_PIECE) * MIN_PIECE
    counts = np.ones_like(ends)
    if len(tiles) < wanted:
        counts = np.maximum(-(-seen_by_all // length), 1)
    owner, index = enumerate_runs(counts)
    first = np.cumsum(counts) - counts
    is_last = index == counts[owner] - 1
    first_key = index * length
    end_key = np.where(is_last, ends[owner], first_key + length)
    return np.column_stack((owner, first_key, end_key, tiles[owner], first[owner], counts[owner]))


def prefill_attention(
    q: Tensor,
    cache: LayerCache,
    work: PrefillWork,
    options: AttentionOptions,
    out: Tensor,
) -> None:
    """Compute causal attention over the cache for the tokens of all tiles.

    Args:
        q: ``[T, H, D]``: queries of the step.
        cache: the layer's keys and values, those of the new tokens included.
        work: the step's tiles.
        options: the layer's scale, window, softcap and sinks.
        out: ``[T, H, D]``; the tiles' rows are written.
    """
    _, num_kv_heads, block_size, head_dim = cache.key.shape
    dims = max(triton.next_power_of_2(head_dim), MIN_ROWS)
    keys, tile_options = _tile(q, cache, dims)
    _prefill_kernel[(num_kv_heads, len(work.pieces))](
        q,
        cache,
        out,
        work.partials,
        work.pieces,
        work.block_tables,
        work.arrivals,
        q if options.sinks is None else options.sinks,
        options.scale * LOG2_E,
        options.window or 0,
        q.stride(0),
        work.block_tables.stride(0),
        K=num_kv_heads,
        G=q.shape[1] // num_kv_heads,
        D=head_dim,
        S=block_size,
        TILE=TILE,
        FIRST_KEY=FIRST_KEY,
        END_KEY=END_KEY,
        ROW=ROW,
        TOKEN=TOKEN,
        NUM_TOKENS=NUM_TOKENS,
        POSITION=POSITION,
        FIRST_PIECE=FIRST_PIECE,
        NUM_PIECES=NUM_PIECES,
        PIECE_COLUMNS=PIECE_COLUMNS,
        ROWS=ROWS,
        DIMS=dims,
        KEYS=keys,
        WINDOWED=options.window is not None,
        SOFTCAP=(options.softcap or 0.0) * LOG2_E,
        SINKS=options.sinks is not None,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        **tile_options,
        **launch_options(q),
    )


def _tile(q: Tensor, cache: LayerCache, dims: int) -> tuple[int, dict[str, int]]:
    """Return keys per iteration, and a launch's options: the fastest on an H200.

    Two programs fit on an SM at once if a thread has no more than 128 registers. Then one of them
    multiplies while the other computes exponentials. With few tokens there are no two, and merging
    pieces takes longer; so does converting keys from FP8.
    """
    if q.dtype == torch.float32:
        return 16, {"num_warps": 4, "num_stages": 2}
    if dims > 128:
        return 64, {"num_warps": 8, "num_stages": 2}
    if len(q) < MIN_TOKENS_FOR_TWO or (cache.key.itemsize == 1 and dims > 64):
        return 128, {"num_warps": 8, "num_stages": 3}
    return 64, {"num_warps": 8, "num_stages": 2, "maxnreg": 128}


@triton.jit(
    do_not_specialize=["window", "table_stride"],
    do_not_specialize_on_alignment=["block_tables"],
)
def _prefill_kernel(
    q,
    cache,
    out,
    partials,
    pieces,
    block_tables,
    arrivals,
    sinks,
    scale,
    window,
    q_stride,
    table_stride,
    K: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    S: tl.constexpr,
    TILE: tl.constexpr,
    FIRST_KEY: tl.constexpr,
    END_KEY: tl.constexpr,
    ROW: tl.constexpr,
    TOKEN: tl.constexpr,
    NUM_TOKENS: tl.constexpr,
    POSITION: tl.constexpr,
    FIRST_PIECE: tl.constexpr,
    NUM_PIECES: tl.constexpr,
    PIECE_COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    DIMS: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOWED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_previous(EARLY)
    kv_head, piece = tl.program_id(0), tl.program_id(1)
    row, dim = tl.arange(0, ROWS), tl.arange(0, DIMS)
    token, head = row // G, kv_head * G + row % G
    work = pieces + piece * PIECE_COLUMNS
    num_tokens = tl.load(work + NUM_TOKENS)
    if num_tokens == 0:  # there are fewer pieces than programs
        return
    is_row = token < num_tokens
    is_real = is_row[:, None] & (dim < D)[None, :]
    q_row = tl.load(work + TOKEN).to(tl.int64) + token
    q_offsets = q_row * q_stride + head * D
    q_tile = tl.load(q + q_offsets[:, None] + dim[None, :], mask=is_real, other=0.0)
    q_tile = as_factor(q_tile, cache)
    first = tl.load(work + POSITION)
    query_position = first + token
    first_key, end = tl.load(work + FIRST_KEY), tl.load(work + END_KEY)
    table = block_tables + tl.load(work + ROW).to(tl.int64) * table_stride
    cache = LayerCache(cache.key + kv_head * (S * D), cache.value + kv_head * (S * D))

    softmax = empty_softmax(ROWS, DIMS)
    # Keys that all rows see need no mask: those before the tile's first token, in whole steps.
    seen_by_all = 0 if WINDOWED else tl.minimum(first + 1, end) // KEYS * KEYS
    for start in range(first_key, seen_by_all, KEYS):
        softmax = _attend(
            q_tile, cache, table, start, query_position, end, window, scale, softmax,
            K, D, S, DIMS, KEYS, False, False, PRECISION, SOFTCAP,
        )  # fmt: skip
    if WINDOWED:  # from the beginning of a block: those before it may be another request's
        seen_by_all = tl.maximum(first - window + 1, 0) // S * S
    for start in range(tl.maximum(seen_by_all, first_key), end, KEYS):
        softmax = _attend(
            q_tile, cache, table, start, query_position, end, window, scale, softmax,
            K, D, S, DIMS, KEYS, True, WINDOWED, PRECISION, SOFTCAP,
        )  # fmt: skip
    # Leave the partial result; the last program merges all of them: see ``decode``.
    num_pieces, first_piece = tl.load(work + NUM_PIECES), tl.load(work + FIRST_PIECE)
    arrived = num_pieces - 1
    arrival = arrivals + tl.load(work + TILE) * K + kv_head
    if num_pieces > 1:
        index = (piece * ROWS + row).to(tl.int64) * K + kv_head
        arrived = leave_part(partials, index, is_row, softmax, arrival, D)
    if arrived < num_pieces - 1:
        return
    if num_pieces > 1:
        tl.store(arrival, 0)
        index = (first_piece * ROWS + row).to(tl.int64) * K + kv_head
        softmax = merge_parts(  # one at a time: no registers are left for more
            partials, index, ROWS * K, num_pieces, is_row, empty_softmax(ROWS, DIMS), D, 1
        )
    if SINKS:
        softmax = take_sinks(sinks, head, is_row, softmax)
    result = softmax.acc / softmax.total[:, None]
    out_offsets = (q_row * (K * G * D) + head * D)[:, None] + dim[None, :]
    tl.store(out + out_offsets, result.to(out.dtype.element_ty), mask=is_real)


@triton.jit
def _attend(
    q_tile,
    cache,
    table,
    start,
    query_position,
    end,
    window,
    scale,
    softmax,
    K: tl.constexpr,
    D: tl.constexpr,
    S: tl.constexpr,
    DIMS: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    PRECISION: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """Add the ``KEYS`` keys from position ``start`` on to the running softmax."""
    dim = tl.arange(0, DIMS)
    position = start + tl.arange(0, KEYS)
    exists = position < end if MASKED else position >= 0
    block = tl.load(table + position // S, mask=exists, other=0).to(tl.int64)
    offsets = (block * (K * S * D) + (position % S) * D)[:, None] + dim[None, :]
    is_key = exists[:, None] & (dim < D)[None, :]
    visible = exists[None, :]
    if MASKED:
        distance = query_position[:, None] - position[None, :]
        visible = distance >= 0
        if WINDOWED:  # a row may then not see any of the first keys
            visible = visible & (distance < window)
    return take_keys(
        q_tile, cache, offsets, is_key, visible, scale, softmax,
        MASKED, WINDOWED, PRECISION, SOFTCAP,
    )  # fmt: skip
