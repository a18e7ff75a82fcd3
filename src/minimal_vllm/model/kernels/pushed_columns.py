"""Columns of ranks, put side by side by all of them.

Each rank has computed some columns of the logits. It writes them into the memory of every other
rank. The ranks meet twice: before, since that memory may have been in use, and after. Then each
copies what it has been sent to where it belongs.

Bytes to each other rank: those of a rank's columns. The floor is the bandwidth between two GPUs.

Source of data that a flag follows: NCCL's protocol Simple, https://github.com/NVIDIA/nccl.
"""

import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.model.kernels.pushed_sum import Farewell, meet, slot_of

BLOCK = 4096
"""Numbers that a program sends at a time."""


def pushed_columns(
    part: Tensor,
    out: Tensor,
    slots: tuple[Tensor, ...],
    flags: tuple[Tensor, ...],
    exchanges: Tensor,
    farewell: Farewell,
    rank: int,
) -> Tensor:
    """Put all ranks' columns side by side, and return them.

    Args:
        part: ``[N, size]``, contiguous: this rank's columns.
        out: ``[N, width]``, contiguous; written. It may lack some of the last columns.
        slots: one slot for each other rank, ``[(ranks - 1) * slot]``, in memory of each rank that
            all can write. ``part`` has at most ``slot`` numbers.
        flags: one for each rank and program, ``[ranks * programs]`` int32.
        exchanges: ``[programs]`` int32: how many exchanges this rank has made; written.
        farewell: whether a rank is gone; see ``tagged_sum``.
        rank: number of this rank.
    """
    programs, ranks = len(exchanges), len(slots)
    _pushed_columns_kernel[(programs,)](
        part, out, slots, flags, exchanges, farewell.places, len(part),
        SIZE=part.shape[1], WIDTH=out.shape[1], SLOT=len(slots[0]) // (ranks - 1), RANK=rank,
        RANKS=ranks, PROGRAMS=programs, BLOCK=BLOCK, num_warps=8, **launch_options(part),
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["rows"])
def _pushed_columns_kernel(
    part,
    out,
    slots,
    flags,
    exchanges,
    farewell,
    rows,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    SLOT: tl.constexpr,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    PROGRAMS: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    BLOCKS: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    wait_for_previous(EARLY)
    number = tl.load(exchanges + program)
    meet(flags, program, number + 1, farewell, RANK, RANKS, PROGRAMS)
    for block in range(program, rows * BLOCKS, PROGRAMS):
        row = block // BLOCKS
        column = block % BLOCKS * BLOCK + tl.arange(0, BLOCK)
        exists = (column < SIZE) & (RANK * SIZE + column < WIDTH)
        place = row * SIZE + column
        numbers = tl.load(part + place, mask=exists)
        tl.store(out + row * WIDTH + RANK * SIZE + column, numbers, mask=exists)
        for other in tl.static_range(RANKS):
            if other != RANK:
                tl.store(slot_of(slots, other, RANK, SLOT) + place, numbers, mask=exists)
    meet(flags, program, number + 2, farewell, RANK, RANKS, PROGRAMS)
    for block in range(program, rows * BLOCKS, PROGRAMS):
        row = block // BLOCKS
        column = block % BLOCKS * BLOCK + tl.arange(0, BLOCK)
        for other in tl.static_range(RANKS):
            if other != RANK:
                exists = (column < SIZE) & (other * SIZE + column < WIDTH)
                sent = slot_of(slots, RANK, other, SLOT) + row * SIZE + column
                # from the L2 cache, into which the others write
                numbers = tl.load(sent, mask=exists, cache_modifier=".cg")
                tl.store(out + row * WIDTH + other * SIZE + column, numbers, mask=exists)
    tl.debug_barrier()  # all threads have read the number
    tl.store(exchanges + program, number + 2)
