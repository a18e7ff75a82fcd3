"""Attention over a prefix that several requests share, read once for all of them.

Requests with the same system prompt have the same blocks at the beginning of their tables. Computed
one by one, each request would read these blocks again in every step. Here one program reads a part
of the shared prefix for one kv head and multiplies it with the queries of many requests (Juravsky
et al., *Hydragen*, 2024; Ye et al., *Cascade inference*, 2024)::

    tables   A  7 2 9 │ 4 1          tile of rows:  A.q0 A.q1 B.q0 B.q1 C.q0 C.q1   (G = 2)
             B  7 2 9 │ 8                              ×
             C  7 2 9 │ 3 6          keys of blocks 7 2 9, in parts: one program each
              shared    own

A softmax over shared and own keys is the merge of the two softmaxes. The decode kernel does it, as
it merges the pieces of a request's own context. It starts while this kernel runs, and reads the own
keys meanwhile: this kernel is bound by arithmetic, and that one by memory. Bytes: the shared prefix
once per tile and kv head (from the L2 cache except for the first tile), instead of once per
request.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.attention.interface import AttentionOptions
from minimal_vllm.attention.kernels.decode import MIN_ROWS, SharedPart
from minimal_vllm.attention.kernels.pieces import PADDING
from minimal_vllm.attention.kernels.softmax import (
    LOG2_E,
    Partials,
    as_factor,
    empty_softmax,
    take_keys,
)
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.device.launch import launch_options, wait_before_next

TILE_ROWS = 64
"""Query heads per tile: the number of rows that the tensor cores of Hopper multiply at once."""
MAX_PARTS = 8
"""Maximum number of parts that a shared prefix is cut into: more take longer to merge."""


@dataclass(frozen=True, slots=True)
class SharedWork:
    """Requests that share prefixes, in tiles; ``DecodeWork`` describes the requests themselves."""

    members: Tensor
    """``[tiles, requests per tile]`` int32: the requests of each tile, which all share one prefix,
    then ``NO_REQUEST``. A tile whose first entry is ``NO_REQUEST`` is empty."""
    lengths: Tensor
    """``[R]`` int32: number of shared tokens of each request; 0: none."""
    partials: Partials
    """``[at least num_parts * R, H, D]``; only members' rows are written."""
    num_parts: int
    """Number of parts that each prefix is cut into."""

    def as_part(self) -> SharedPart:
        """Return the results in the form that ``decode_attention`` merges."""
        return SharedPart(self.partials, self.num_parts)


def requests_per_tile(num_heads: int, num_kv_heads: int) -> int:
    """Return the number of requests whose query heads of one kv head fit into a tile."""
    return max(TILE_ROWS // (num_heads // num_kv_heads), 1)


def wanted_parts(num_tiles: int, num_kv_heads: int, num_sms: int) -> int:
    """Return the number of parts that gives each SM two programs, a power of two.

    Args:
        num_tiles: number of tiles that are not empty, if all requests share one prefix.
        num_kv_heads: number of programs that compute each part of a tile.
        num_sms: number of the GPU's streaming multiprocessors.
    """
    wanted = max(2 * num_sms // (num_tiles * num_kv_heads), 1)
    return min(1 << (wanted.bit_length() - 1), MAX_PARTS)


def shared_attention(
    q: Tensor,
    cache: LayerCache,
    work: SharedWork,
    token: Tensor,
    table_row: Tensor,
    block_tables: Tensor,
    options: AttentionOptions,
) -> None:
    """Compute attention over shared prefixes, and store partial results in ``work.partials``.

    Args:
        q: ``[T, H, D]``; the rows ``token`` are read.
        cache: the layer's keys and values.
        work: the requests that share prefixes.
        token: as in ``DecodeWork``.
        table_row: as in ``DecodeWork``.
        block_tables: as in ``DecodeWork``.
        options: the layer's scale and softcap. The decode kernel adds the sinks, once per request.
    """
    _, num_kv_heads, block_size, head_dim = cache.key.shape
    num_tiles, members = work.members.shape
    group = q.shape[1] // num_kv_heads
    _shared_kernel[(num_kv_heads, num_tiles, work.num_parts)](
        q,
        cache,
        work.partials,
        work.members,
        work.lengths,
        token,
        table_row,
        block_tables,
        len(token),
        work.num_parts,
        options.scale * LOG2_E,
        q.stride(0),
        block_tables.stride(0),
        K=num_kv_heads,
        G=group,
        D=head_dim,
        S=block_size,
        MEMBERS=members,
        ROWS=max(triton.next_power_of_2(members * group), MIN_ROWS),
        DIMS=max(triton.next_power_of_2(head_dim), MIN_ROWS),
        KEYS=32 if q.dtype == torch.float32 else 64,
        SOFTCAP=(options.softcap or 0.0) * LOG2_E,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=4,
        num_stages=2,
        **launch_options(q),
    )


@triton.jit(
    do_not_specialize=["num_requests", "num_parts", "table_stride"],
    do_not_specialize_on_alignment=["token", "table_row", "block_tables"],
)
def _shared_kernel(
    q,
    cache,
    partials,
    members,
    lengths,
    token,
    table_row,
    block_tables,
    num_requests,
    num_parts,
    scale,
    q_stride,
    table_stride,
    K: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    S: tl.constexpr,
    MEMBERS: tl.constexpr,
    ROWS: tl.constexpr,
    DIMS: tl.constexpr,
    KEYS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    head, tile, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    one = tl.load(members + tile * MEMBERS)  # any member: what is read here is the same for all
    if one < 0:  # the tile is empty
        wait_before_next(EARLY)
        return
    row, dim = tl.arange(0, ROWS), tl.arange(0, DIMS)
    member = tl.load(members + tile * MEMBERS + row // G, mask=row < MEMBERS * G, other=PADDING)
    is_member = member >= 0
    is_real = is_member[:, None] & (dim < D)[None, :]
    heads = head * G + row % G
    q_row = tl.load(token + member, mask=is_member, other=0).to(tl.int64)
    shared = tl.load(lengths + one)
    length = tl.cdiv(tl.cdiv(shared, num_parts), KEYS) * KEYS
    start = part * length
    end = tl.minimum(start + length, shared)
    table = block_tables + tl.load(table_row + one).to(tl.int64) * table_stride
    # Up to here only the plan was read. The decode kernel, which is next, reads the same queries.
    wait_before_next(EARLY)
    q_tile = tl.load(
        q + q_row[:, None] * q_stride + heads[:, None] * D + dim[None, :], mask=is_real, other=0.0
    )
    q_tile = as_factor(q_tile, cache)

    softmax = empty_softmax(ROWS, DIMS)
    for first in range(start, end, KEYS):
        position = first + tl.arange(0, KEYS)
        exists = position < end
        block = tl.load(table + position // S, mask=exists, other=0).to(tl.int64)
        slot = (block * K + head) * (S * D) + (position % S) * D
        offsets = slot[:, None] + dim[None, :]
        is_key = exists[:, None] & (dim < D)[None, :]
        visible = exists[None, :]
        softmax = take_keys(
            q_tile, cache, offsets, is_key, visible, scale, softmax, True, False, PRECISION, SOFTCAP
        )
    # A part without keys has weight 0 in the merge: 2**-inf.
    has_keys = softmax.total > 0
    total = tl.where(has_keys, softmax.total, 1.0)
    result = softmax.acc / total[:, None]
    lse = tl.where(has_keys, softmax.peak + tl.log2(total), -float("inf"))
    out_row = (part * num_requests + member) * (K * G) + heads
    tl.store(partials.out + out_row[:, None] * D + dim[None, :], result, mask=is_real)
    tl.store(partials.lse + out_row, lse, mask=is_member)
