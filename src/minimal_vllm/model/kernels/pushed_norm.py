"""Sums over ranks of many tokens, added to the residual stream and normalized, in one kernel.

Each rank has a part of the same ``[T, hidden]``. All need the norm of the residual stream to which
the sum of the parts is added. The tokens are *divided* among the ranks: each is sent the others'
parts of its own tokens, adds them to its tokens of the stream, and sends the norms to all others.
So several ranks send fewer bytes than if each sent its whole part, and each normalizes only its
share. The stream of its other tokens is not kept up.

Ranks write into each other's memory, and a flag of each program follows what it has sent, as in
``pushed_sum``. A program does the same rows in all ranks, so it only waits for the same program of
the others. What is sent needs one place only: a rank sends parts after all others have read those
before, and norms after all others have begun this sum, so that no kernel needs the norms before.

Bytes to each other rank: ``2 * T * hidden * itemsize / ranks``. The floor is the bandwidth between
two GPUs.

Source: Korthikanti et al. 2022, sequence parallelism, https://arxiv.org/abs/2205.05198.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.model.kernels.pushed_sum import meet, own_part


@dataclass(frozen=True, slots=True)
class DividedPlaces:
    """Memory that ranks divide tokens with, filled with zeros. All ranks can write it."""

    slots: tuple[Tensor, ...]
    """One slot for each other rank, ``[(ranks - 1) * slot]``, for parts of a rank's tokens."""
    normed: tuple[Tensor, ...]
    """Norms of all tokens, ``[most numbers]``."""
    flags: tuple[Tensor, ...]
    """One for each rank and program, ``[ranks * programs]`` int32."""
    exchanges: Tensor
    """``[programs]`` int32: how many exchanges this rank has made, two for each sum."""


def divided_norm(
    parts: Tensor, residual: Tensor, weight: Tensor, eps: float, places: DividedPlaces, rank: int
) -> Tensor:
    """Add the sum of all ranks' tensors to ``residual``, in place, and return the norm of that.

    Args:
        parts: ``[parts, T, hidden]``, contiguous: parts whose sum is the rank's tensor.
        residual: ``[T, hidden]``, contiguous; changed. Only the tokens of this rank are right,
            before and after.
        weight: ``[hidden]``.
        eps: constant added to the mean square.
        places: where ranks exchange their numbers.
        rank: number of this rank.

    Returns:
        ``[T, hidden]``, in the memory ``places.normed``.
    """
    tokens, size = residual.shape
    ranks, programs = len(places.flags), len(places.exchanges)
    normed = tuple(each[: residual.numel()].view(tokens, size) for each in places.normed)
    _divided_norm_kernel[(programs,)](
        parts, residual, weight, normed, places.slots, places.flags, places.exchanges, tokens,
        rows_of_rank(tokens, ranks), eps,
        PARTS=len(parts), SIZE=size, SLOT=len(places.slots[0]) // (ranks - 1), RANK=rank,
        RANKS=ranks, PROGRAMS=programs, BLOCK=triton.next_power_of_2(size),
        num_warps=_num_warps(size), **launch_options(parts),
    )  # fmt: skip
    return normed[rank]


def rows_of_rank(tokens: int, ranks: int) -> int:
    """Return the number of tokens that each rank has, if they are divided; the last has fewer."""
    return -(-tokens // ranks)


def _num_warps(size: int) -> int:
    return 4 if size <= 2048 else 8


@triton.jit(do_not_specialize=["tokens", "rows"])
def _divided_norm_kernel(
    parts,
    residual,
    weight,
    normed,
    slots,
    flags,
    exchanges,
    tokens,
    rows,
    eps,
    PARTS: tl.constexpr,
    SIZE: tl.constexpr,
    SLOT: tl.constexpr,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    PROGRAMS: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    exists = column < SIZE
    scale = tl.load(weight + column, mask=exists, other=0.0)
    wait_for_previous(EARLY)
    number = tl.load(exchanges + program)
    if program < rows:
        for other in tl.static_range(RANKS):
            if other != RANK:
                slot = slots[other] + (RANK - (other < RANK)) * SLOT
                for row in range(program, min(rows, tokens - other * rows), PROGRAMS):
                    place = (other * rows + row) * SIZE + column
                    own = own_part(parts, place, exists, tokens * SIZE, PARTS)
                    tl.store(slot + row * SIZE + column, own.to(slot.dtype.element_ty), mask=exists)
        meet(flags, program, number + 1, RANK, RANKS, PROGRAMS)
        for row in range(program, min(rows, tokens - RANK * rows), PROGRAMS):
            place = (RANK * rows + row) * SIZE + column
            stream = tl.load(residual + place, mask=exists, other=0.0)
            added = tl.zeros([BLOCK], tl.float32)
            for other in tl.static_range(RANKS):
                if other == RANK:
                    own = own_part(parts, place, exists, tokens * SIZE, PARTS)
                    added += own.to(stream.dtype).to(tl.float32)
                else:  # from the L2 cache, into which the others write
                    sent = slots[RANK] + (other - (other > RANK)) * SLOT + row * SIZE + column
                    numbers = tl.load(sent, mask=exists, other=0.0, cache_modifier=".cg")
                    added += numbers.to(tl.float32)
            value, result = _added_and_normed(stream, added, scale, eps, SIZE)
            tl.store(residual + place, value, mask=exists)
            for other in tl.static_range(RANKS):
                tl.store(normed[other] + place, result, mask=exists)
        meet(flags, program, number + 2, RANK, RANKS, PROGRAMS)
    tl.debug_barrier()  # all threads have read the number
    tl.store(exchanges + program, number + 2)


@triton.jit
def _added_and_normed(stream, added, scale, eps, SIZE: tl.constexpr):
    """Return the residual stream with a sum added to it, and its norm."""
    value = stream + added.to(stream.dtype)
    wide = value.to(tl.float32)
    unit = wide * tl.rsqrt(tl.sum(wide * wide) / SIZE + eps)
    # Rounded where ``norm`` does.
    return value, (unit.to(scale.dtype) * scale).to(stream.dtype)
