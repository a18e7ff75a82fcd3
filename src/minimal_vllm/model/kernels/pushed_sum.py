"""Sums over ranks in one kernel, which writes its part into the other ranks' memory.

A sum of a few tokens' vectors takes as long as the ranks take to meet. So they meet once. Each
program writes its numbers into a slot of every other rank, and waits until the others' numbers are
in its own slots. There are two ways to know that they are:

- A few numbers are *tagged*: a word of 8 bytes has a number in float32, and the number of the sum.
  A word arrives as a whole, so a program reads its slots until all words have the right tag.
- More numbers are followed by a *flag* for each program, which says the same of all its numbers.
  They take a quarter of the bytes, but the flag can't be sent before they have arrived.

There are two sets of slots, which take turns. A rank writes into one set only after its previous
sum. For that all ranks had to begin theirs, and so had ended the one before, which read the set.

If a rank is gone, the others' programs would wait forever. So they look now and then for a
*farewell* in the CPU's memory, which any thread can write at any time, whatever the GPU and its
driver wait for. A program that finds it there notes it in the GPU's memory, where the others look
more often.

Source of both ways: NCCL's protocols LL and Simple, https://github.com/NVIDIA/nccl.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor, dtype

from minimal_vllm.device.launch import launch_options, wait_for_previous

TAGGED_PROGRAMS, FLAGGED_PROGRAMS = 16, 64
"""Number of programs, the same for every sum: each counts the sums by itself."""
BLOCK = 2048
"""Numbers that a program reads at a time, if they are followed by a flag."""
ROUNDS, ROUNDS_AFAR = tl.constexpr(1 << 8), tl.constexpr(1 << 15)
"""Rounds of waiting, of a microsecond or less, between two looks at the GPU's memory and at the
CPU's. Thousands of threads that read the CPU's memory together wait for milliseconds."""


@dataclass(frozen=True, slots=True)
class Farewell:
    """Two flags, 0 or 1, which tell waiting programs that a rank is gone."""

    places: tuple[Tensor, Tensor]
    """``[1]`` int32 each: in the GPU's memory, and in memory of the CPU that the GPU can read."""

    @staticmethod
    def on(device: torch.device) -> "Farewell":
        """Return memory for a farewell to programs on a device."""
        far = torch.zeros(1, dtype=torch.int32, pin_memory=device.type == "cuda")
        return Farewell((far.to(device, copy=True), far))

    def say(self) -> None:
        """Let all programs that wait end, and later ones not wait; may be called by any thread."""
        self.places[1].fill_(1)

    @property
    def is_said(self) -> bool:
        """Whether a rank is gone."""
        return bool(self.places[1].item())


def tagged_sum(
    parts: Tensor,
    dtype: dtype,
    slots: tuple[Tensor, ...],
    sums: Tensor,
    farewell: Farewell,
    rank: int,
) -> Tensor:
    """Return the sum of all ranks' tensors, added in the order of ranks.

    Args:
        parts: ``[parts, ...]``, contiguous: parts whose sum is the rank's tensor.
        dtype: dtype of the rank's tensor, to which the sum of its parts is rounded.
        slots: slots of each rank, two sets of one for each rank: ``[2 * ranks * slot]`` int64. The
            tensor has at most ``slot`` numbers.
        sums: ``[TAGGED_PROGRAMS]`` int32: how many sums the rank has computed; written.
        farewell: whether a rank is gone.
        rank: number of this rank.
    """
    total, programs = parts.new_empty(parts.shape[1:], dtype=dtype), len(sums)
    _tagged_sum_kernel[(programs,)](
        parts, total, slots, sums, farewell.places, total.numel(),
        PARTS=len(parts), SLOT=_slot(slots), RANK=rank, RANKS=len(slots),
        BLOCK=max(triton.next_power_of_2(triton.cdiv(total.numel(), programs)), 128),
        num_warps=4, **launch_options(parts),
    )  # fmt: skip
    return total


def flagged_sum(
    parts: Tensor,
    slots: tuple[Tensor, ...],
    flags: tuple[Tensor, ...],
    sums: Tensor,
    farewell: Farewell,
    rank: int,
) -> Tensor:
    """Return the sum of all ranks' tensors, as ``tagged_sum`` does.

    Args:
        parts: see ``tagged_sum``.
        slots: see ``tagged_sum``; in the dtype of the rank's tensor.
        flags: flags of each rank, one for each rank and program: ``[ranks * FLAGGED_PROGRAMS]``
            int32.
        sums: ``[FLAGGED_PROGRAMS]`` int32: how many sums the rank has computed; written.
        farewell: see ``tagged_sum``.
        rank: see ``tagged_sum``.
    """
    total, programs = parts.new_empty(parts.shape[1:], dtype=slots[rank].dtype), len(sums)
    _flagged_sum_kernel[(programs,)](
        parts, total, slots, flags, sums, farewell.places, total.numel(),
        PARTS=len(parts), SLOT=_slot(slots), RANK=rank, RANKS=len(slots),
        PROGRAMS=programs, BLOCK=BLOCK, num_warps=8, **launch_options(parts),
    )  # fmt: skip
    return total


def _slot(slots: tuple[Tensor, ...]) -> int:
    """Return the number of elements of a slot."""
    return len(slots[0]) // (2 * len(slots))


@triton.jit
def _tagged_sum_kernel(
    parts,
    total,
    slots,
    sums,
    farewell,
    SIZE,
    PARTS: tl.constexpr,
    SLOT: tl.constexpr,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    program = tl.program_id(0)
    wait_for_previous(EARLY)
    number = tl.load(sums + program) + 1
    first_slot = (number & 1) * (RANKS * SLOT)
    place = program * BLOCK + tl.arange(0, BLOCK)
    exists = place < SIZE
    own = own_part(parts, place, exists, SIZE, PARTS).to(total.dtype.element_ty).to(tl.float32)
    bits = own.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
    word = bits | (number.to(tl.int64) << 32)
    for other in tl.static_range(RANKS):
        if other != RANK:
            tl.store(slots[other] + first_slot + RANK * SLOT + place, word, mask=exists)
    added = tl.zeros([BLOCK], tl.float32)
    for other in tl.static_range(RANKS):
        if other == RANK:
            added += own
        else:
            sent = slots[RANK] + first_slot + other * SLOT + place
            added += _received(sent, exists, number, farewell)
    tl.store(total + place, added.to(total.dtype.element_ty), mask=exists)
    tl.debug_barrier()  # all threads have read the number
    tl.store(sums + program, number)


@triton.jit
def _received(place, exists, number, farewell):
    """Wait until all words at some places are of a sum, or a later one; return their numbers."""
    words = tl.load(place, mask=exists, other=0, volatile=True)
    rounds = 0
    while tl.max(_are_behind(words, exists, number)) > given_up(farewell, rounds):
        words = tl.load(place, mask=exists, other=0, volatile=True)
        rounds += 1
    return (words & 0xFFFFFFFF).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _are_behind(words, exists, number):
    """Return 1 for words of an earlier sum, otherwise 0. A rank may also be a sum ahead."""
    # The difference of two tags is right even if they wrap.
    return (exists & ((words >> 32).to(tl.int32) - number < 0)).to(tl.int32)


@triton.jit
def _flagged_sum_kernel(
    parts,
    total,
    slots,
    flags,
    sums,
    farewell,
    SIZE,
    PARTS: tl.constexpr,
    SLOT: tl.constexpr,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    PROGRAMS: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    program = tl.program_id(0)
    wait_for_previous(EARLY)
    number = tl.load(sums + program) + 1
    first_slot = (number & 1) * (RANKS * SLOT)
    if program * BLOCK < SIZE:
        for start in range(program * BLOCK, SIZE, PROGRAMS * BLOCK):
            place = start + tl.arange(0, BLOCK)
            own = own_part(parts, place, place < SIZE, SIZE, PARTS).to(total.dtype.element_ty)
            for other in tl.static_range(RANKS):
                if other != RANK:
                    slot = slots[other] + first_slot + RANK * SLOT
                    tl.store(slot + place, own, mask=place < SIZE)
        meet(flags, program, number, farewell, RANK, RANKS, PROGRAMS)
        for start in range(program * BLOCK, SIZE, PROGRAMS * BLOCK):
            place = start + tl.arange(0, BLOCK)
            own = own_part(parts, place, place < SIZE, SIZE, PARTS).to(total.dtype.element_ty)
            added = _added(own, slots[RANK] + first_slot, place, SIZE, SLOT, RANK, RANKS)
            tl.store(total + place, added.to(total.dtype.element_ty), mask=place < SIZE)
    tl.debug_barrier()  # all threads have read the number
    tl.store(sums + program, number)


@triton.jit
def meet(  # noqa: ANN201 - Triton's language
    flags,
    program,
    number,
    farewell,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    """Tell the same program of all ranks that it has been sent this part, and wait for theirs."""
    tl.debug_barrier()  # the flags follow what all threads have written
    for other in tl.static_range(RANKS):
        if other != RANK:
            flag = flags[other] + RANK * PROGRAMS + program
            tl.atomic_xchg(flag, number, sem="release", scope="sys")
    for other in tl.static_range(RANKS):
        if other != RANK:
            flag = flags[RANK] + other * PROGRAMS + program
            rounds = 0
            while _is_behind(flag, number) > given_up(farewell, rounds):
                rounds += 1
    tl.debug_barrier()


@triton.jit
def slot_of(slots, OWNER: tl.constexpr, SENDER: tl.constexpr, SLOT: tl.constexpr):  # noqa: ANN201
    """Return the slot, in a rank's memory, for what another sends; it has none for its own part."""
    return slots[OWNER] + (SENDER - (OWNER < SENDER)) * SLOT


@triton.jit
def _is_behind(flag, number):
    """Return 1 if a flag is of an earlier sum, otherwise 0. A rank may also be a sum ahead."""
    # The difference of two numbers is right even if they wrap.
    return (tl.atomic_add(flag, 0, sem="acquire", scope="sys") - number < 0).to(tl.int32)


@triton.jit
def given_up(farewell, rounds):  # noqa: ANN201 - Triton's language
    """Return 1 if a rank is known to be gone after ``rounds`` of waiting, otherwise 0."""
    near, far = farewell[0], farewell[1]
    looks_near = rounds & (ROUNDS - 1) == ROUNDS - 1
    looks_far = rounds & (ROUNDS_AFAR - 1) == ROUNDS_AFAR - 1
    is_gone = tl.load(far, mask=looks_far, other=0, volatile=True)
    tl.store(near, 1, mask=is_gone == 1)
    return is_gone | tl.load(near, mask=looks_near, other=0, volatile=True)


@triton.jit
def _added(
    own,
    slots,
    place,
    SIZE,
    SLOT: tl.constexpr,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
):
    """Return the sum of all ranks' numbers at some places, in float32."""
    added = tl.zeros(place.shape, tl.float32)
    for other in tl.static_range(RANKS):
        if other == RANK:
            added += own.to(tl.float32)
        else:  # from the L2 cache, into which the others write
            sent = slots + other * SLOT + place
            numbers = tl.load(sent, mask=place < SIZE, other=0.0, cache_modifier=".cg")
            added += numbers.to(tl.float32)
    return added


@triton.jit
def own_part(parts, place, exists, SIZE, PARTS: tl.constexpr):  # noqa: ANN201 - Triton's language
    """Return the sum of a rank's own parts at some places, in float32."""
    own = tl.zeros(place.shape, tl.float32)
    for part in tl.static_range(PARTS):
        own += tl.load(parts + part * SIZE + place, mask=exists, other=0.0).to(tl.float32)
    return own
