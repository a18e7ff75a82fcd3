"""Attention over a beginning that several requests share, read once for all of them.

Requests with the same system prompt have the same blocks at the beginning of their tables. One by
one, each would read them again in every step. Here one program reads a part of the shared beginning
for one kv head, and multiplies it with the queries of many requests at once (Juravsky et al.,
*Hydragen*, 2024; Ye et al., *Cascade inference*, 2024)::

    tables   A  7 2 9 │ 4 1          tile of rows:  A.q0 A.q1 B.q0 B.q1 C.q0 C.q1   (G = 2)
             B  7 2 9 │ 8                              ×
             C  7 2 9 │ 3 6          keys of blocks 7 2 9, in parts: one program each
              shared    own

A softmax over shared and own keys is the merge of a softmax over each; ``decode`` does it,
as it merges the pieces of an own context. Bytes: the shared beginning once per tile and kv head
(from the L2 cache but for the first), instead of once per request.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.attention.kernels.decode import LEAST_ROWS, LOG2_E, Partials, SharedPart
from minimal_vllm.attention.kernels.softmax import nothing_seen, take_keys
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.device.launch import launch_options, wait_for_previous

TILE_ROWS = 64
"""Query heads of a tile: what the tensor cores of Hopper multiply at once."""
PARTS = 4
"""Into how many parts a shared beginning is cut, so that there are programs for all processors."""


@dataclass(frozen=True, slots=True)
class SharedWork:
    """Who shares what; see ``DecodeWork`` for the requests."""

    members: Tensor
    """``[tiles, requests per tile]`` int32: the requests of each tile, all of which share the same
    beginning; ``NOBODY`` where there is none. Not first in its tile, unless it is empty."""
    lengths: Tensor
    """``[R]`` int32: how many tokens of a request are shared; 0: none."""
    partials: Partials
    """``[PARTS * R, H, D]``; only the rows of members are written."""

    def as_part(self) -> SharedPart:
        """What ``decode_attention`` merges."""
        return SharedPart(self.partials, PARTS)


def requests_per_tile(num_heads: int, num_kv_heads: int) -> int:
    """How many requests' query heads of one kv head a tile holds."""
    return max(TILE_ROWS // (num_heads // num_kv_heads), 1)


def shared_attention(
    q: Tensor,
    cache: LayerCache,
    work: SharedWork,
    token: Tensor,
    table_row: Tensor,
    block_tables: Tensor,
    scale: float,
) -> None:
    """Attend over shared beginnings; the partial results are left in ``work.partials``.

    Args:
        q: ``[T, H, D]``, of which the rows ``token`` are used.
        cache: one layer's.
        work: who shares what.
        token: as in ``DecodeWork``.
        table_row: as in ``DecodeWork``.
        block_tables: as in ``DecodeWork``.
        scale: what the scores are multiplied by.
    """
    _, num_kv_heads, block_size, head_dim = cache.key.shape
    num_tiles, members = work.members.shape
    group = q.shape[1] // num_kv_heads
    _shared_kernel[(num_kv_heads, num_tiles, PARTS)](
        q,
        cache.key,
        cache.value,
        work.partials.out,
        work.partials.lse,
        work.members,
        work.lengths,
        token,
        table_row,
        block_tables,
        len(token),
        scale * LOG2_E,
        q.stride(0),
        block_tables.stride(0),
        K=num_kv_heads,
        G=group,
        D=head_dim,
        S=block_size,
        MEMBERS=members,
        ROWS=max(triton.next_power_of_2(members * group), LEAST_ROWS),
        DIMS=max(triton.next_power_of_2(head_dim), LEAST_ROWS),
        KEYS=32 if q.dtype == torch.float32 else 64,
        PARTS=PARTS,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=4,
        num_stages=2,
        **launch_options(q),
    )


@triton.jit(
    do_not_specialize=["num_requests", "table_stride"],
    do_not_specialize_on_alignment=["token", "table_row", "block_tables"],
)
def _shared_kernel(
    q,
    key,
    value,
    partial_out,
    partial_lse,
    members,
    lengths,
    token,
    table_row,
    block_tables,
    num_requests,
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
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    head, tile, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    one = tl.load(members + tile * MEMBERS)  # any member will do for what they share
    if one < 0:
        wait_for_previous(EARLY)
        return
    row, dim = tl.arange(0, ROWS), tl.arange(0, DIMS)
    member = tl.load(members + tile * MEMBERS + row // G, mask=row < MEMBERS * G, other=-1)
    is_real = (member >= 0)[:, None] & (dim < D)[None, :]
    heads = head * G + row % G
    q_row = tl.load(token + member, mask=member >= 0, other=0).to(tl.int64)
    shared = tl.load(lengths + one)
    length = tl.cdiv(tl.cdiv(shared, PARTS), KEYS) * KEYS
    start = part * length
    end = tl.minimum(start + length, shared)
    table = block_tables + tl.load(table_row + one).to(tl.int64) * table_stride
    wait_for_previous(EARLY)  # until here only the plan was read
    q_tile = tl.load(
        q + q_row[:, None] * q_stride + heads[:, None] * D + dim[None, :], mask=is_real, other=0.0
    )

    peak, total, mean = nothing_seen(ROWS, DIMS)
    for first in range(start, end, KEYS):
        position = first + tl.arange(0, KEYS)
        exists = position < end
        block = tl.load(table + position // S, mask=exists, other=0).to(tl.int64)
        place = (block * K + head) * (S * D) + (position % S) * D
        place = place[:, None] + dim[None, :]
        is_key = exists[:, None] & (dim < D)[None, :]
        peak, total, mean = take_keys(
            q_tile, key, value, place, is_key, exists[None, :], scale,
            peak, total, mean, True, False, PRECISION,
        )  # fmt: skip
    # A part without keys has weight 0 in the merge: 2**-inf.
    mean = mean / tl.where(total > 0, total, 1.0)[:, None]
    lse = tl.where(total > 0, peak + tl.log2(tl.where(total > 0, total, 1.0)), -float("inf"))
    out_row = (part * num_requests + member) * (K * G) + heads
    tl.store(partial_out + out_row[:, None] * D + dim[None, :], mean, mask=is_real)
    tl.store(partial_lse + out_row, lse, mask=member >= 0)
