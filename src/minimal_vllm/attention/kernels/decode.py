"""Paged attention of requests that compute one token each: the kernel of decoding.

Source: Kwon et al., *PagedAttention*, SOSP 2023, section 4.1; flash-decoding, see ``pieces``.

One program reads one piece of one request's context (see ``pieces``) for one kv head, and
serves all G query heads that share it (grouped-query packing), so that keys and values are read
from memory once. With a block size of 4 tokens::

    request's tokens   0  1  2  3 │ 4  5  6  7 │ 8  9
    block table          block 7  │  block 2   │ block 5
    cache of head h    key[7, h] = [4, D]   key[2, h] = [4, D]   key[5, h] = [4, D]
                         contiguous           contiguous           half of it

    address of key (position p, dimension d)
        = key + block_table[p // S] * (K * S * D) + h * (S * D) + (p % S) * D + d

Each program keeps a running maximum, sum and weighted values of its G heads (see ``softmax``). If a
request has several pieces, each leaves its partial result in memory, and the program that finishes
last merges them: the result over the keys of several pieces is the mean of their results, weighted
by the sums of their exponentials. No second kernel has to be launched for that.

Bytes: ``2 * seq_len * D * itemsize`` per request and kv head, all else is small. FLOPs: ``4 *
seq_len * D`` per request and query head. With G = 2 and 2-byte numbers these are 2 FLOPs per byte,
where an H200 could do 200: the memory's rate is the floor.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.attention.kernels.pieces import Pieces
from minimal_vllm.attention.kernels.softmax import (
    leave_part,
    merge_parts,
    nothing_seen,
    take_keys,
)
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.device.launch import launch_options, wait_for_previous

LEAST_ROWS = 16
"""Rows and columns that a matrix product on tensor cores has at least: G query heads and small D
are padded to them."""
LOG2_E = 1.4426950408889634
AT_ONCE = tl.constexpr(4)
"""Partial results that are merged at once."""
MOST_LOOKED_UP_AHEAD = 32
"""Up to so many requests, the block table's entries are read one tile ahead of the keys (a third
stage of the loop): a link less in the chain of waits. With more, the registers that this takes are
better used by one more program per processor."""


@dataclass(frozen=True, slots=True)
class Partials:
    """Results over parts of a context, to be merged. Shared by all layers: they run in turn."""

    out: Tensor
    """``[parts, H, D]`` float32: weighted means of values."""
    lse: Tensor
    """``[parts, H]`` float32: the base-2 logarithms of the sums of exponentials; -inf: no keys."""


@dataclass(frozen=True, slots=True)
class SharedPart:
    """What ``shared`` has computed for beginnings that several requests share."""

    partials: Partials
    """``[parts * R, H, D]``: part ``s`` of request ``r`` in row ``s * R + r``."""
    num_parts: int


@dataclass(frozen=True, slots=True)
class DecodeWork:
    """A decode step, as the kernel wants it."""

    token: Tensor
    """``[R]`` int32: the row of ``q`` and ``out`` that is the request's."""
    seq_lens: Tensor
    """``[R]`` int32: tokens in the cache, the new one included; 0: no request (padding)."""
    table_row: Tensor
    """``[R]`` int32: the request's row in the block tables."""
    block_tables: Tensor
    """``[…, most blocks]`` int32."""
    starts: Tensor
    """``[R]`` int32: the first token that is read here: that of the window, or behind what is
    shared (with ``shared``, 0 means that nothing is)."""
    pieces: Pieces
    partials: Partials
    arrivals: Tensor
    """``[R * K]`` int32, all 0: how many pieces are done. Left as it was found."""
    shared: SharedPart | None = None


def decode_attention(
    q: Tensor, cache: LayerCache, work: DecodeWork, scale: float, out: Tensor
) -> None:
    """Attend over the cache with one token of each request.

    Args:
        q: ``[T, H, D]``, of which the rows ``work.token`` are used.
        cache: one layer's, with the new tokens' keys and values.
        work: which request is where.
        scale: what the scores are multiplied by.
        out: ``[T, H, D]``, of which the rows ``work.token`` are written.
    """
    _, num_kv_heads, block_size, head_dim = cache.key.shape
    group = q.shape[1] // num_kv_heads
    shared = work.shared
    _decode_kernel[(num_kv_heads, len(work.pieces.owner))](
        q,
        cache.key,
        cache.value,
        out,
        work.partials.out,
        work.partials.lse,
        shared.partials.out if shared else work.partials.out,
        shared.partials.lse if shared else work.partials.lse,
        work.token,
        work.starts,
        work.seq_lens,
        work.table_row,
        work.block_tables,
        work.pieces.owner,
        work.pieces.first_piece,
        work.pieces.piece_size,
        work.arrivals,
        len(work.token),
        scale * LOG2_E,
        q.stride(0),
        work.block_tables.stride(0),
        K=num_kv_heads,
        G=group,
        D=head_dim,
        S=block_size,
        ROWS=max(LEAST_ROWS, triton.next_power_of_2(group)),
        DIMS=max(triton.next_power_of_2(head_dim), LEAST_ROWS),
        KEYS=32 if q.dtype == torch.float32 else 64,
        SHARED_PARTS=shared.num_parts if shared else 0,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=4,
        num_stages=3 if len(work.token) <= MOST_LOOKED_UP_AHEAD else 2,
        **launch_options(q),
    )


@triton.jit(
    do_not_specialize=["num_requests", "table_stride"],
    do_not_specialize_on_alignment=["token", "starts", "seq_lens", "table_row", "block_tables"],
)
def _decode_kernel(
    q,
    key,
    value,
    out,
    partial_out,
    partial_lse,
    shared_out,
    shared_lse,
    token,
    starts,
    seq_lens,
    table_row,
    block_tables,
    owner,
    first_piece,
    piece_size,
    arrivals,
    num_requests,
    scale,
    q_stride,
    table_stride,
    K: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    S: tl.constexpr,
    ROWS: tl.constexpr,
    DIMS: tl.constexpr,
    KEYS: tl.constexpr,
    SHARED_PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    head, piece = tl.program_id(0), tl.program_id(1)
    request = tl.load(owner + piece)
    if request < 0:
        wait_for_previous(EARLY)
        return
    first = tl.load(first_piece + request)
    num_pieces = tl.load(first_piece + request + 1) - first
    length = tl.load(piece_size)
    own = tl.load(starts + request)
    start = own + (piece - first) * length
    end = tl.minimum(start + length, tl.load(seq_lens + request))
    table = block_tables + tl.load(table_row + request).to(tl.int64) * table_stride

    row, dim = tl.arange(0, ROWS), tl.arange(0, DIMS)
    is_real = (row < G)[:, None] & (dim < D)[None, :]
    heads = head * G + row
    q_row = tl.load(token + request).to(tl.int64)
    wait_for_previous(EARLY)  # until here only the plan was read
    q_tile = tl.load(
        q + q_row * q_stride + heads[:, None] * D + dim[None, :], mask=is_real, other=0.0
    )

    peak, total, mean = nothing_seen(ROWS, DIMS)
    for tile in range(start, end, KEYS):
        position = tile + tl.arange(0, KEYS)
        exists = position < end
        block = tl.load(table + position // S, mask=exists, other=0).to(tl.int64)
        slot = (block * K + head) * (S * D) + (position % S) * D
        place = slot[:, None] + dim[None, :]
        is_key = exists[:, None] & (dim < D)[None, :]
        peak, total, mean = take_keys(
            q_tile, key, value, place, is_key, exists[None, :], scale,
            peak, total, mean, True, False, PRECISION,
        )  # fmt: skip
    # ---- a cut context: leave the partial result; who comes last merges them all -----------------
    arrived = num_pieces - 1
    if num_pieces > 1:
        arrived = leave_part(
            partial_out, partial_lse, piece * (K * G) + heads, arrivals + request * K + head,
            row < G, is_real, dim, peak, total, mean, D,
        )  # fmt: skip
    if arrived < num_pieces - 1:
        return
    if num_pieces > 1:
        tl.store(arrivals + request * K + head, 0)
        peak, total, mean = nothing_seen(ROWS, DIMS)
        peak, total, mean = merge_parts(
            partial_out, partial_lse, first * (K * G) + heads, K * G, num_pieces,
            row < G, is_real, dim, peak, total, mean, D, AT_ONCE,
        )  # fmt: skip
    if SHARED_PARTS:
        num_shared = tl.where(own > 0, SHARED_PARTS, 0)
        peak, total, mean = merge_parts(
            shared_out, shared_lse, request * (K * G) + heads, num_requests * (K * G), num_shared,
            row < G, is_real, dim, peak, total, mean, D, AT_ONCE,
        )  # fmt: skip
    mean = mean / total[:, None]
    out_place = q_row * (K * G * D) + heads[:, None] * D + dim[None, :]
    tl.store(out + out_place, mean.to(out.dtype.element_ty), mask=is_real)
