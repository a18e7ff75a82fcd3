"""Sums over ranks, added to the residual stream and normalized, in one kernel.

Each rank has a part of the same ``[T, hidden]``. All need the norm of the residual stream to which
the sum of the parts is added. Ranks write into each other's memory, as in ``pushed_sum``, in one of
two ways:

- For up to some hundred tokens, each rank sends its whole part to all others, and normalizes all
  tokens. No number that is sent is 0 in all bits, because zeros are sent as -0. So a rank reads the
  memory that is sent to, which was cleared before, until nothing in it is 0. Nothing but numbers is
  sent, and no rank waits for a flag. There are three sets of slots: one is sent to and read, one
  was before and is cleared, and one may be sent to already by a rank that is a sum ahead.
- For more, the tokens are *divided* among the ranks. Each rank is sent the others' parts of its own
  tokens, adds them to its tokens of the stream, and sends the norms to all others. A flag of each
  program follows what it has sent. Several ranks send fewer bytes in this way, and each normalizes
  only its share. The stream of its other tokens is not kept up.

A program does the same rows in all ranks, so it only waits for the same program of the others.

Bytes to each other rank: ``T * hidden * itemsize``, or ``2 * T * hidden * itemsize / ranks`` if
tokens are divided. The floor is the bandwidth between two GPUs.

Sources: the protocol without flags of TensorRT-LLM, https://github.com/NVIDIA/TensorRT-LLM, which
calls it Lamport's; divided norms: Korthikanti et al. 2022, https://arxiv.org/abs/2205.05198.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.model.kernels.pushed_sum import Farewell, given_up, meet, own_part, slot_of


@dataclass(frozen=True, slots=True)
class WholePlaces:
    """Memory for parts of all tokens, filled with zeros, and what a rank has noted there."""

    slots: tuple[Tensor, ...]
    """Three sets of one slot for each rank, ``[3 * ranks * slot]``: integers with as many bits as
    the vectors' numbers. Each rank has such memory, and all can write it."""
    turns: Tensor
    """``[programs]`` int32: which set is next."""
    last: Tensor
    """``[programs]`` int32: number of tokens of the last sum."""
    farewell: Farewell
    """Whether a rank is gone; see ``tagged_sum``."""


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
    farewell: Farewell
    """Whether a rank is gone; see ``tagged_sum``."""


def whole_norm(
    parts: Tensor, residual: Tensor, weight: Tensor, eps: float, places: WholePlaces, rank: int
) -> Tensor:
    """Add the sum of all ranks' tensors to ``residual``, in place, and return the norm of that.

    Args:
        parts: ``[parts, T, hidden]``, contiguous: parts whose sum is the rank's tensor. The hidden
            size is the same for all sums.
        residual: ``[T, hidden]``, contiguous, the same in all ranks; changed.
        weight: ``[hidden]``.
        eps: constant added to the mean square.
        places: where ranks exchange their numbers.
        rank: number of this rank.

    Returns:
        ``[T, hidden]``.
    """
    tokens, size = residual.shape
    ranks, programs = len(places.slots), len(places.turns)
    normed = residual.new_empty(tokens, size)
    _whole_norm_kernel[(programs,)](
        parts, residual, weight, normed, places.slots, places.turns, places.last,
        places.farewell.places, tokens, eps,
        PARTS=len(parts), SIZE=size, SLOT=len(places.slots[0]) // (3 * ranks), RANK=rank,
        RANKS=ranks, PROGRAMS=programs, BLOCK=triton.next_power_of_2(size),
        num_warps=_num_warps(size), **launch_options(parts),
    )  # fmt: skip
    return normed


def divided_norm(
    parts: Tensor, residual: Tensor, weight: Tensor, eps: float, places: DividedPlaces, rank: int
) -> Tensor:
    """Add the sum of all ranks' tensors to ``residual``, in place, and return the norm of that.

    Args:
        parts: see ``whole_norm``.
        residual: see ``whole_norm``, but only the tokens of this rank are right, before and after.
        weight: see ``whole_norm``.
        eps: see ``whole_norm``.
        places: where ranks exchange their numbers.
        rank: number of this rank.

    Returns:
        ``[T, hidden]``, in the memory ``places.normed``.
    """
    tokens, size = residual.shape
    ranks, programs = len(places.flags), len(places.exchanges)
    normed = tuple(each[: residual.numel()].view(tokens, size) for each in places.normed)
    _divided_norm_kernel[(programs,)](
        parts, residual, weight, normed, places.slots, places.flags, places.exchanges,
        places.farewell.places, tokens, rows_of_rank(tokens, ranks), eps,
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


@triton.jit(do_not_specialize=["tokens"])
def _whole_norm_kernel(
    parts,
    residual,
    weight,
    normed,
    slots,
    turns,
    last,
    farewell,
    tokens,
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
    turn = tl.load(turns + program)
    last_tokens = tl.load(last + program)
    current = turn * (RANKS * SLOT)
    before = (turn + 2) % 3 * (RANKS * SLOT)
    kind = residual.dtype.element_ty
    for row in range(program, tokens, PROGRAMS):
        place = row * SIZE + column
        own = _without_zeros(own_part(parts, place, exists, tokens * SIZE, PARTS), kind)
        for other in tl.static_range(RANKS):
            if other != RANK:
                sent = own.to(kind).to(slots[other].dtype.element_ty, bitcast=True)
                tl.store(slots[other] + current + RANK * SLOT + place, sent, mask=exists)
    for row in range(program, last_tokens, PROGRAMS):
        for other in tl.static_range(RANKS):
            if other != RANK:
                read = slots[RANK] + before + other * SLOT + row * SIZE + column
                tl.store(read, tl.zeros([BLOCK], slots[RANK].dtype.element_ty), mask=exists)
    for row in range(program, tokens, PROGRAMS):
        place = row * SIZE + column
        stream = tl.load(residual + place, mask=exists, other=0.0)
        added = tl.zeros([BLOCK], tl.float32)
        for other in tl.static_range(RANKS):
            if other == RANK:
                own = own_part(parts, place, exists, tokens * SIZE, PARTS)
                added += _without_zeros(own, kind)
            else:
                sent = slots[RANK] + current + other * SLOT + place
                added += _received(sent, exists, farewell).to(kind, bitcast=True).to(tl.float32)
        value, result = _added_and_normed(stream, added, scale, eps, SIZE)
        tl.store(residual + place, value, mask=exists)
        tl.store(normed + place, result, mask=exists)
    tl.debug_barrier()  # all threads have read what is noted
    tl.store(turns + program, (turn + 1) % 3)
    tl.store(last + program, tokens)


@triton.jit
def _without_zeros(numbers, kind: tl.constexpr):
    """Return numbers as they are rounded to a dtype, in float32, with -0 for 0."""
    rounded = numbers.to(kind).to(tl.float32)
    minus_zero = tl.full(rounded.shape, -2147483648, tl.int32).to(tl.float32, bitcast=True)
    return tl.where(rounded == 0, minus_zero, rounded)


@triton.jit
def _received(place, exists, farewell):
    """Return the bits of numbers at some places, once none is 0 or a rank is gone."""
    bits = tl.load(place, mask=exists, other=1, volatile=True)
    rounds = 0
    while tl.max((bits == 0).to(tl.int32)) > given_up(farewell, rounds):
        bits = tl.load(place, mask=exists, other=1, volatile=True)
        rounds += 1
    return bits


@triton.jit
def _added_and_normed(stream, added, scale, eps, SIZE: tl.constexpr):
    """Return the residual stream with a sum added to it, and its norm."""
    value = stream + added.to(stream.dtype)
    wide = value.to(tl.float32)
    unit = wide * tl.rsqrt(tl.sum(wide * wide) / SIZE + eps)
    # Rounded where ``norm`` does.
    return value, (unit.to(scale.dtype) * scale).to(stream.dtype)


@triton.jit(do_not_specialize=["tokens", "rows"])
def _divided_norm_kernel(
    parts,
    residual,
    weight,
    normed,
    slots,
    flags,
    exchanges,
    farewell,
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
                slot = slot_of(slots, other, RANK, SLOT)
                for row in range(program, min(rows, tokens - other * rows), PROGRAMS):
                    place = (other * rows + row) * SIZE + column
                    own = own_part(parts, place, exists, tokens * SIZE, PARTS)
                    tl.store(slot + row * SIZE + column, own.to(slot.dtype.element_ty), mask=exists)
        meet(flags, program, number + 1, farewell, RANK, RANKS, PROGRAMS)
        for row in range(program, min(rows, tokens - RANK * rows), PROGRAMS):
            place = (RANK * rows + row) * SIZE + column
            stream = tl.load(residual + place, mask=exists, other=0.0)
            added = tl.zeros([BLOCK], tl.float32)
            for other in tl.static_range(RANKS):
                if other == RANK:
                    own = own_part(parts, place, exists, tokens * SIZE, PARTS)
                    added += own.to(stream.dtype).to(tl.float32)
                else:  # from the L2 cache, into which the others write
                    sent = slot_of(slots, RANK, other, SLOT) + row * SIZE + column
                    numbers = tl.load(sent, mask=exists, other=0.0, cache_modifier=".cg")
                    added += numbers.to(tl.float32)
            value, result = _added_and_normed(stream, added, scale, eps, SIZE)
            tl.store(residual + place, value, mask=exists)
            for other in tl.static_range(RANKS):
                tl.store(normed[other] + place, result, mask=exists)
        meet(flags, program, number + 2, farewell, RANK, RANKS, PROGRAMS)
    tl.debug_barrier()  # all threads have read the number
    tl.store(exchanges + program, number + 2)
