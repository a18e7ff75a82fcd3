"""Deciding on the GPU which guesses are kept, and writing that to the table of requests.

That a step verifies guesses is from Leviathan et al., "Fast Inference from Transformers via
Speculative Decoding", 2023; ``speculation/rows.py`` says which are kept.
"""

import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.runner.table import BEFORE, POSITION, TOKEN, RowTable
from minimal_vllm.sampling.row import NO_TOKEN


def accept(
    table: RowTable,
    order: Tensor,
    offsets: Tensor,
    guesses: Tensor,
    positions: Tensor,
    sampled: Tensor,
) -> None:
    """Write the last token that each row keeps, the one before it, and the row's new position.

    How many tokens it keeps is written too, and all that were sampled.

    A request keeps the tokens up to the first that is not the guess at the next place; see
    ``count_kept`` in ``speculation/rows.py``. Called again with other tokens, for the same
    inputs, it overwrites what it wrote.

    Args:
        table: the table that holds the rows.
        order: ``[N]`` int32: indices of the rows, those of a request one after the other.
        offsets: ``[N]`` int32: see ``PlaceInputs``.
        guesses: ``[N]`` int64: token at each place, a guess if its offset is above 0.
        positions: ``[N]`` int64: position of each place in its request.
        sampled: ``[N]`` int64: the token that was sampled at each place.
    """
    n = len(order)
    _accept_kernel[(triton.cdiv(n, 128),)](
        table.cells, table.cells.stride(0), order, offsets, guesses, positions, sampled, n,
        table.padding_row, table.first_guess + BEFORE, table.kept,
        NO_TOKEN=NO_TOKEN, TOKEN=TOKEN, POSITION=POSITION, BLOCK=128, **launch_options(order),
    )  # fmt: skip


@triton.jit(
    do_not_specialize=["n", "padding_row", "before", "kept"],
    do_not_specialize_on_alignment=["offsets", "guesses", "positions", "sampled"],
)
def _accept_kernel(
    cells,
    width,
    order,
    offsets,
    guesses,
    positions,
    sampled,
    n,
    padding_row,
    before,
    kept,
    NO_TOKEN: tl.constexpr,
    TOKEN: tl.constexpr,
    POSITION: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_previous(EARLY)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    table_row = tl.load(order + index, mask=index < n, other=padding_row)
    is_real = table_row != padding_row
    offset = tl.load(offsets + index, mask=is_real, other=0)
    is_kept = is_real
    for back in range(tl.max(offset)):
        holds = _holds(offsets, guesses, sampled, index - back, n, NO_TOKEN)
        is_kept = is_kept & (holds | (back >= offset))
    is_last = is_kept & ~_holds(offsets, guesses, sampled, index + 1, n, NO_TOKEN)
    row = cells + table_row.to(tl.int64) * width
    token = tl.load(sampled + index, mask=is_real, other=0)
    tl.store(row + kept + 1 + offset, token.to(tl.int32), mask=is_real)
    computed = tl.load(guesses + index, mask=is_last, other=0)
    position = tl.load(positions + index, mask=is_last, other=0)
    tl.store(row + TOKEN, token.to(tl.int32), mask=is_last)
    tl.store(row + before, computed.to(tl.int32), mask=is_last)
    tl.store(row + kept, offset + 1, mask=is_last)
    tl.store(row + POSITION, (position + 1).to(tl.int32), mask=is_last)


@triton.jit
def _holds(offsets, guesses, sampled, place, n, NO_TOKEN: tl.constexpr):
    """Return whether a guess is the token that was sampled before it, and a token follows it."""
    exists = (place > 0) & (place < n)
    offset = tl.load(offsets + place, mask=exists, other=0)
    is_guess = exists & (offset > 0)
    guess = tl.load(guesses + place, mask=is_guess, other=0)
    before = tl.load(sampled + place - 1, mask=is_guess, other=0)
    following = tl.load(sampled + place, mask=is_guess, other=0)
    return is_guess & (guess == before) & (following != NO_TOKEN)
