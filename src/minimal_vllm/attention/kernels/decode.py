"""Paged attention of requests that compute one token each, or a few: the decode kernel.

Source: Kwon et al., *PagedAttention*, SOSP 2023, section 4.1; flash-decoding, see ``pieces``.

One program reads one piece of one request's context (see ``pieces``) for one kv head. It serves
all G query heads that share this kv head (grouped-query packing), so that keys and values are read
from memory once. With a block size of 4 tokens::

    request's tokens   0  1  2  3 │ 4  5  6  7 │ 8  9
    block table          block 7  │  block 2   │ block 5
    cache of head h    key[7, h] = [4, D]   key[2, h] = [4, D]   key[5, h] = [4, D]
                         contiguous           contiguous           half of it

    address of key (position p, dimension d)
        = key + block_table[p // S] * (K * S * D) + h * (S * D) + (p % S) * D + d

Each program keeps a running softmax of its G heads (see ``softmax``). If a request has several
pieces, each program stores its partial result in memory, and the program that finishes last merges
them: the result over the keys of several pieces is the mean of their results, weighted by the sums
of their exponentials. This needs no second kernel.

A request with guesses has a few tokens. The matrix products have at least 16 rows, of which the G
query heads of one token fill only some. So a program may serve several *queries*, the heads of
consecutive tokens, in about the same time::

    row of the product    0    1    2    3    4    5  …            with G = 2
    token and head       0,0  0,1  1,0  1,1  2,0  2,1
    sees keys up to       p    p   p+1  p+1  p+2  p+2

Bytes: ``2 * seq_len * D * itemsize`` per request and kv head; everything else is small. FLOPs: ``4
* seq_len * D`` per request and query head. With G = 2 and 2-byte numbers these are 2 FLOPs per
byte, where an H200 could do 200: the floor is the memory bandwidth.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.attention.interface import AttentionOptions
from minimal_vllm.attention.kernels.pieces import Pieces
from minimal_vllm.attention.kernels.softmax import (
    LOG2_E,
    Partials,
    as_factor,
    empty_softmax,
    leave_part,
    merge_compactly,
    merge_parts,
    take_keys,
    take_sinks,
)
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.device.launch import launch_options, wait_for_previous, wait_in_first
from minimal_vllm.device.properties import num_sms

MIN_ROWS = 16
"""Minimum number of rows and columns of a matrix product on tensor cores. G query heads and small
head dimensions are padded to it."""
AT_ONCE = tl.constexpr(4)
"""Number of partial results that are loaded and merged together."""
MERGED_ROWS = 32
"""Number of partial results of single heads that are loaded and merged together, if nothing else is
merged."""
MERGED_PIECES, MAX_MERGED, FEW_PLACES = 8, 128 * 128, 24
"""Number of pieces of several queries that are loaded and merged together; maximum number of
numbers in them, and of tokens in such a step."""
MERGE_REGISTERS = 168
"""Number of a thread's registers where several queries are merged together. Three programs of 4
warps then fit into an SM."""
MAX_LOOKED_UP_AHEAD = 32
"""Maximum number of requests for which the block table is read one tile ahead of the keys (a third
stage of the loop), which removes one wait from the chain of loads. With more requests, the
registers that this takes are better spent on one more program per SM."""


def queries_per_program(num_heads: int, num_kv_heads: int) -> int:
    """Return the number of queries that a program computes in the time of one."""
    return max(MIN_ROWS * num_kv_heads // num_heads, 1)


@dataclass(frozen=True, slots=True)
class SharedPart:
    """Results of the ``shared`` kernel, the one launched before, over prefixes that are shared."""

    partials: Partials
    """``[parts * R, H, D]``: part ``s`` of request ``r`` is in row ``s * R + r``."""
    num_parts: int


@dataclass(frozen=True, slots=True)
class DecodeWork:
    """Input of the decode kernel, the same for all layers of a step."""

    token: Tensor
    """``[R]`` int32: each request's row in ``q`` and ``out``; with ``counts``, its first one."""
    seq_lens: Tensor
    """``[R]`` int32: number of tokens in the cache, the new one included; 0 for padding. With
    ``counts``, the first new one."""
    table_row: Tensor
    """``[R]`` int32: each request's row in the block tables."""
    block_tables: Tensor
    """``[…, max blocks]`` int32: block tables of the requests."""
    pieces: Pieces
    """Pieces from the first token in the window, or after the shared prefix. With ``shared``, a
    request that starts at 0 shares nothing."""
    partials: Partials
    arrivals: Tensor
    """``[R * K]`` int32: number of finished pieces; 0 before and after the kernel."""
    shared: SharedPart | None = None
    counts: Tensor | None = None
    """``[R]`` int32: number of consecutive tokens of each request, at most ``max_queries``. None:
    one each. The tokens after the first count neither in ``seq_lens`` nor in ``pieces``: the last
    piece has their keys, too."""
    max_queries: int = 1
    """Maximum number of tokens that a program computes."""


def decode_attention(
    q: Tensor, cache: LayerCache, work: DecodeWork, options: AttentionOptions, out: Tensor
) -> None:
    """Compute attention over the cache for one token of each request.

    Args:
        q: ``[T, H, D]``; the rows ``work.token`` are read.
        cache: the layer's keys and values, those of the new tokens included.
        work: each request's token, and its pieces of context.
        options: the layer's scale, softcap and sinks; ``work`` knows its window.
        out: ``[T, H, D]``; the rows ``work.token`` are written.
    """
    _, num_kv_heads, block_size, head_dim = cache.key.shape
    group = q.shape[1] // num_kv_heads
    shared = work.shared
    merged = _merge_rows(work, group, cache)
    _decode_kernel[(num_kv_heads, len(work.pieces.owner))](
        q,
        cache,
        out,
        work.partials,
        shared.partials if shared else work.partials,
        work.token,
        work.seq_lens,
        work.table_row,
        work.block_tables,
        work.pieces,
        work.arrivals,
        q if options.sinks is None else options.sinks,
        work.token if work.counts is None else work.counts,
        len(work.token),
        shared.num_parts if shared else 0,
        options.scale * LOG2_E,
        options.window or 0,
        q.stride(0),
        work.block_tables.stride(0),
        K=num_kv_heads,
        G=group,
        QUERIES=work.max_queries,
        D=head_dim,
        S=block_size,
        ROWS=max(MIN_ROWS, triton.next_power_of_2(group * work.max_queries)),
        DIMS=max(triton.next_power_of_2(head_dim), MIN_ROWS),
        KEYS=_num_keys(q, work),
        READS_ALL=cache.key.itemsize == 1,
        SHARED=shared is not None,
        WINDOWED=options.window is not None,
        SOFTCAP=(options.softcap or 0.0) * LOG2_E,
        SINKS=options.sinks is not None,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        MERGED=merged,
        num_warps=_num_warps(len(work.token), cache),
        num_stages=_num_stages(len(work.token), cache),
        maxnreg=MERGE_REGISTERS if merged and work.max_queries > 1 else None,
        **launch_options(q),
    )


def _num_keys(q: Tensor, work: DecodeWork) -> int:
    """Return the number of keys per tile: the fastest on an H200.

    Smaller tiles let more programs run at once. That pays if many requests have a few tokens of
    their own, as behind a shared prefix. Long contexts take a tenth longer with small tiles.
    """
    are_short = work.shared is not None and len(work.token) > MAX_LOOKED_UP_AHEAD
    return 32 if are_short or q.dtype == torch.float32 else 64


def _num_warps(num_requests: int, cache: LayerCache) -> int:
    """Return the warps of a program: the fastest on an H200.

    Keys in FP8 are read so fast that programs would mostly wait for their own warps. With few
    requests, they mostly wait for memory.
    """
    num_programs = num_requests * cache.key.shape[1]
    has_many = num_programs >= num_sms(cache.key.device)
    return 2 if cache.key.itemsize == 1 and cache.key.shape[3] <= 128 and has_many else 4


def _num_stages(num_requests: int, cache: LayerCache) -> int:
    """Return the stages of the loop: the fastest on an H200. Tiles in FP8 leave room for more."""
    if cache.key.itemsize == 1:
        return 4
    return 3 if num_requests <= MAX_LOOKED_UP_AHEAD else 2


def _merge_rows(work: DecodeWork, group: int, cache: LayerCache) -> int:
    """Return the rows of the tile in which pieces are merged; 0: those of the matrix product.

    With many requests, few contexts are cut, and a tile takes registers from all programs. Keys in
    FP8 may have only two warps: too few for pieces of several queries.
    """
    if work.shared is not None or len(work.token) > MAX_LOOKED_UP_AHEAD:
        return 0
    rows: int = triton.next_power_of_2(group * work.max_queries)
    if work.max_queries == 1:
        return max(MERGED_ROWS, rows)
    numbers = MERGED_PIECES * rows * triton.next_power_of_2(cache.key.shape[3])
    fits = numbers <= MAX_MERGED and cache.key.itemsize > 1 and len(work.token) <= FEW_PLACES
    return MERGED_PIECES * rows if fits else 0


# Tuples hold only pointers that are always aligned: Triton specializes each of their members, and
# would compile the kernel again for a member whose alignment changes.
@triton.jit(
    do_not_specialize=["num_requests", "num_shared_parts", "window", "table_stride"],
    do_not_specialize_on_alignment=[
        *("token", "seq_lens", "table_row", "block_tables", "counts"),
    ],
)
def _decode_kernel(
    q,
    cache,
    out,
    partials,
    shared,
    token,
    seq_lens,
    table_row,
    block_tables,
    pieces,
    arrivals,
    sinks,
    counts,
    num_requests,
    num_shared_parts,
    scale,
    window,
    q_stride,
    table_stride,
    K: tl.constexpr,
    G: tl.constexpr,
    QUERIES: tl.constexpr,
    D: tl.constexpr,
    S: tl.constexpr,
    ROWS: tl.constexpr,
    DIMS: tl.constexpr,
    KEYS: tl.constexpr,
    READS_ALL: tl.constexpr,
    SHARED: tl.constexpr,
    WINDOWED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr,
    PRECISION: tl.constexpr,
    MERGED: tl.constexpr,
    EARLY: tl.constexpr,
):
    head, piece = tl.program_id(0), tl.program_id(1)
    request = tl.load(pieces.owner + piece)
    if request < 0:  # padding: there are fewer pieces than programs
        wait_in_first(piece, EARLY)
        return
    first = tl.load(pieces.first_piece + request)
    num_pieces = tl.load(pieces.first_piece + request + 1) - first
    length = tl.load(pieces.piece_size)
    own = tl.load(pieces.start + request)
    start = own + (piece - first) * length
    seq_len = tl.load(seq_lens + request)
    table = block_tables + tl.load(table_row + request).to(tl.int64) * table_stride
    row, dim = tl.arange(0, ROWS), tl.arange(0, DIMS)
    count = tl.load(counts + request) if QUERIES > 1 else 1
    query = tl.minimum(row // G, count - 1)  # rows of padding see what the last query sees
    heads, row_end = head * G + row % G, seq_len + query
    PART: tl.constexpr = K * QUERIES * G
    part_row = head * (QUERIES * G) + row  # rows of a program lie side by side
    q_row = tl.load(token + request).to(tl.int64) + query
    is_row = row < G * count
    is_real = is_row[:, None] & (dim < D)[None, :]
    end = tl.where(piece == first + num_pieces - 1, seq_len + count - 1, start + length)
    wait_for_previous(EARLY and not SHARED)  # up to here only the plan was read
    q_offsets = (q_row * q_stride + heads * D)[:, None] + dim[None, :]
    q_tile = as_factor(tl.load(q + q_offsets, mask=is_real, other=0.0), cache)
    softmax = empty_softmax(ROWS, DIMS)
    for tile in range(start, end, KEYS):
        position = tile + tl.arange(0, KEYS)
        visible = (position < end)[None, :]
        offsets, is_key = _find_keys(table, position, end, head, dim, K, S, D, READS_ALL)
        if QUERIES > 1:
            visible = visible & _is_seen(row_end[:, None] - position[None, :], window, WINDOWED)
        softmax = take_keys(
            q_tile, cache, offsets, is_key, visible, scale, softmax, True, False, PRECISION, SOFTCAP
        )
    wait_for_previous(EARLY and SHARED)  # the shared kernel has waited for q and cache
    # ---- a cut context: store the partial result; the last program merges all of them ------------
    arrived, arrival = num_pieces - 1, arrivals + request * K + head
    if num_pieces > 1:
        arrived = leave_part(partials, piece * PART + part_row, is_row, softmax, arrival, D)
    if arrived < num_pieces - 1:
        return
    if num_pieces > 1:
        tl.store(arrival, 0)
        if MERGED:
            _merge_all(partials, out, token + request, sinks, first, num_pieces, count,
                       K, G, QUERIES, D, DIMS, MERGED, SINKS)  # fmt: skip
            return
        softmax = merge_parts(
            partials, first * PART + part_row, PART, num_pieces,
            is_row, empty_softmax(ROWS, DIMS), D, AT_ONCE,
        )  # fmt: skip
    if SHARED:
        softmax = merge_parts(
            shared, request * (K * G) + heads, num_requests * (K * G),
            tl.where(own > 0, num_shared_parts, 0), is_row, softmax, D, AT_ONCE,
        )  # fmt: skip
    if SINKS:
        softmax = take_sinks(sinks, heads, is_row, softmax)
    result = softmax.acc / softmax.total[:, None]
    offsets = (q_row * (K * G * D) + heads * D)[:, None] + dim[None, :]
    tl.store(out + offsets, result.to(out.dtype.element_ty), mask=is_real)


@triton.jit
def _merge_all(
    partials,
    out,
    token,
    sinks,
    first,
    num_pieces,
    count,
    K: tl.constexpr,
    G: tl.constexpr,
    QUERIES: tl.constexpr,
    D: tl.constexpr,
    DIMS: tl.constexpr,
    ROWS: tl.constexpr,
    SINKS: tl.constexpr,
):
    """Merge the pieces of a context, and write the results of this program's queries."""
    head = tl.program_id(0)
    MOST: tl.constexpr = QUERIES * G
    index, stride = (first * K + head) * MOST, K * MOST
    softmax = merge_compactly(partials, index, stride, num_pieces, count * G, MOST, D, DIMS, ROWS)
    row = tl.arange(0, softmax.peak.shape[0])
    is_row = row < count * G
    if SINKS:
        softmax = take_sinks(sinks, head * G + row % G, is_row, softmax)
    result = softmax.acc / tl.where(is_row, softmax.total, 1.0)[:, None]
    member, dim = row[:, None], tl.arange(0, DIMS)[None, :]
    query = tl.load(token).to(tl.int64) + member // G
    place = out + ((query * K + head) * G + member % G) * D + dim
    tl.store(place, result.to(out.dtype.element_ty), mask=is_row[:, None] & (dim < D))


@triton.jit
def _find_keys(
    table,
    position,
    end,
    head,
    dim,
    K: tl.constexpr,
    S: tl.constexpr,
    D: tl.constexpr,
    READS_ALL: tl.constexpr,
):
    """Return the offsets of keys from the start of the cache, ``[keys, dims]``, and which exist.

    A mask takes too long if keys are in FP8. Beyond the end, the last key is then read again.
    """
    exists = (position < end) | READS_ALL
    place = tl.minimum(position, end - 1) if READS_ALL else position
    block = tl.load(table + place // S, mask=exists, other=0).to(tl.int64)
    slot = (block * K + head) * (S * D) + (place % S) * D
    return slot[:, None] + dim[None, :], exists[:, None] & (dim < D)[None, :]


@triton.jit
def _is_seen(distance, window, WINDOWED: tl.constexpr):
    """Return whether a query sees a key, given the distance from the key to the query's end."""
    if WINDOWED:
        return (distance > 0) & (distance <= window)
    else:  # noqa: RET505 - the compiler wants it so
        return distance > 0
