"""Reading a step's inputs from the table of requests, and writing its tokens to the table.

``runner/table.py`` describes the table.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.runner.table import (
    FIRST_BLOCK,
    MIN_P,
    NO_GUESS,
    POSITION,
    PROMPT_LENGTH,
    SEED,
    TEMPERATURE,
    TOKEN,
    TOP_K,
    TOP_P,
    RowTable,
)
from minimal_vllm.sampling.kernels.sample import SamplingInputs

JUST_SAMPLED = -2
"""Placeholder for a token that the last step with guesses sampled; see ``PlaceInputs``."""


@dataclass(frozen=True, slots=True)
class RowInputs:
    """Inputs of the model and of the sampler for some rows of the table."""

    tokens: Tensor
    """``[N]`` int64."""
    positions: Tensor
    """``[N]`` int64: positions of the tokens in their requests."""
    slots: Tensor
    """``[groups, N]`` int64: slots of their keys and values in each group of layers; negative for
    padding."""
    seq_lens: Tensor
    """``[N]`` int32: number of tokens in the cache, these included; 0 for padding."""
    sampling: SamplingInputs
    """Inputs of the sampler."""
    own_slots: Tensor
    """``[N]`` int64: slots of the tokens themselves in the first group; negative for padding.
    Without ``behind``, they are ``slots[0]``."""
    offsets: Tensor
    """``[N]`` int32: distance of each place from the request's last known token, or ``NO_GUESS``
    for a place behind a guess that did not hold. Empty without places."""


@dataclass(frozen=True, slots=True)
class PlaceInputs:
    """Places of a step in which a request may have several, one after the other.

    ::

        order     A  A  A  B  C  C      A has two guesses, B none, C one
        offsets   0  1  2  0  0  1
        tokens    -  a1 a2 -  -  c1     a minus stands for -1: the table has the token
        counts    2  0  1  1  2  0      with two queries per program

    Places may also be those of the last step with guesses, each with the token that was sampled
    there, while only the GPU knows how many of them it kept.
    """

    offsets: Tensor
    """``[N]`` int32: distance of each place from the request's last known token; for what was just
    sampled, its index among the places of the last step with guesses."""
    tokens: Tensor
    """``[N]`` int32: the token at each place. -1: the request's last token if the offset is 0, the
    one before it if the offset is -1, and otherwise the guess that the table has at this offset.
    -2: the token that the last step with guesses sampled at its place of this index."""
    counts: Tensor
    """``[N]`` int32: number of places, from this one on, that one program of attention computes; 0
    for those in between."""

    def first(self, count: int) -> "PlaceInputs":
        """Return the first ``count`` places."""
        return PlaceInputs(self.offsets[:count], self.tokens[:count], self.counts[:count])


def begin_step(
    table: RowTable,
    order: Tensor,
    block_size: int,
    places: PlaceInputs | None = None,
    *,
    behind: bool = False,
) -> RowInputs:
    """Look up the inputs of a step for some rows of the table.

    Args:
        table: the table that holds the rows.
        order: ``[N]`` int32: indices of the rows.
        block_size: number of tokens per block.
        places: where each row stands. Default: at the last token of its request. With places,
            ``seq_lens`` is 0 where ``counts`` is.
        behind: whether positions, slots and lengths are those of the tokens before, where an
            EAGLE-3 head has its keys.
    """
    n = len(order)
    tokens, positions, seeds, output_indices, top_p = order.new_empty(5, n, dtype=torch.int64)
    slots = order.new_empty(table.num_groups, n, dtype=torch.int64)
    own_slots = order.new_empty(n, dtype=torch.int64) if behind else slots[0]
    offsets = order.new_empty(n if places else 0)
    seq_lens, top_k, temperature, min_p = order.new_empty(4, n)
    _begin_kernel[(triton.cdiv(n, 32),)](
        table.cells, table.cells.stride(0), order,
        places.offsets if places else order,
        places.tokens if places else order,
        places.counts if places else order,
        offsets,
        tokens, positions, slots, own_slots, seq_lens,
        temperature, seeds, output_indices, top_k, top_p, min_p, n, block_size, table.num_blocks,
        table.first_guess, table.kept, PLACES=places is not None, BEHIND=behind, TOKEN=TOKEN,
        POSITION=POSITION, NO_GUESS=NO_GUESS, JUST_SAMPLED=JUST_SAMPLED,
        PROMPT_LENGTH=PROMPT_LENGTH, TEMPERATURE=TEMPERATURE, SEED=SEED, TOP_K=TOP_K,
        MIN_P=MIN_P, TOP_P=TOP_P, FIRST_BLOCK=FIRST_BLOCK, GROUPS=table.num_groups,
        BLOCK=32, num_warps=1, **launch_options(order),
    )  # fmt: skip
    sampling = SamplingInputs(
        temperature=temperature.view(torch.float32),
        seeds=seeds,
        output_index=output_indices,
        top_k=top_k,
        top_p=top_p.view(torch.float64),
        min_p=min_p.view(torch.float32),
    )
    return RowInputs(tokens, positions, slots, seq_lens, sampling, own_slots, offsets)


@triton.jit(
    do_not_specialize=["n", "first_guess", "kept"],
    do_not_specialize_on_alignment=[
        *("tokens", "positions", "slots", "seq_lens", "temperature", "seeds", "output_indices"),
        *("top_k", "top_p", "min_p", "offsets", "given", "counts", "own_slots", "new_offsets"),
    ],
)
def _begin_kernel(
    cells,
    width,
    order,
    offsets,
    given,
    counts,
    new_offsets,
    tokens,
    positions,
    slots,
    own_slots,
    seq_lens,
    temperature,
    seeds,
    output_indices,
    top_k,
    top_p,
    min_p,
    n,
    block_size,
    num_blocks,
    first_guess,
    kept,
    PLACES: tl.constexpr,
    BEHIND: tl.constexpr,
    TOKEN: tl.constexpr,
    POSITION: tl.constexpr,
    NO_GUESS: tl.constexpr,
    JUST_SAMPLED: tl.constexpr,
    PROMPT_LENGTH: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    SEED: tl.constexpr,
    TOP_K: tl.constexpr,
    MIN_P: tl.constexpr,
    TOP_P: tl.constexpr,
    FIRST_BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_previous(EARLY)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = index < n
    row = cells + tl.load(order + index, mask=exists, other=0).to(tl.int64) * width
    position = tl.load(row + POSITION, mask=exists, other=-1)
    is_real = position >= 0
    token = _last_token(row, is_real, TOKEN)
    is_counted = is_real
    if PLACES:
        known = tl.load(given + index, mask=is_real, other=0)
        offset = tl.load(offsets + index, mask=is_real, other=0)
        was_sampled = known == JUST_SAMPLED
        sampled = tl.load(row + kept + 1 + offset, mask=is_real & was_sampled, other=0)
        # The last of those kept is the last known token.
        num_kept = tl.load(row + kept, mask=is_real & was_sampled, other=0)
        offset = tl.where(was_sampled, offset + 1 - num_kept, offset)
        position += offset
        # For an offset of -1, this is the column BEFORE.
        guess = tl.load(row + first_guess + offset - 1, mask=is_real & (offset >= -1), other=0)
        token = tl.where(offset == 0, token, tl.where(was_sampled, tl.maximum(sampled, 0), guess))
        token = tl.where(known >= 0, known, token)
        new_offset = tl.where(was_sampled & (offset > 0), NO_GUESS, offset)
        tl.store(new_offsets + index, new_offset, mask=exists)
        is_counted = tl.load(counts + index, mask=is_real, other=0) > 0
    output_index = position + 1 - tl.load(row + PROMPT_LENGTH, mask=is_real, other=0)
    tl.store(output_indices + index, output_index.to(tl.int64), mask=exists)
    if BEHIND:
        own_slot = _slot_of(row, position, block_size, is_real, FIRST_BLOCK)
        tl.store(own_slots + index, own_slot, mask=exists)
        position -= 1
    for group in tl.static_range(GROUPS):
        table = row + group * num_blocks
        slot = _slot_of(table, position, block_size, is_real, FIRST_BLOCK)
        tl.store(slots + group * n + index, slot, mask=exists)
    tl.store(tokens + index, token.to(tl.int64), mask=exists)
    tl.store(positions + index, tl.maximum(position, 0).to(tl.int64), mask=exists)
    tl.store(seq_lens + index, tl.where(is_counted, position + 1, 0), mask=exists)
    tl.store(temperature + index, tl.load(row + TEMPERATURE, mask=is_real, other=0), mask=exists)
    tl.store(seeds + index, _load_two(row + SEED, is_real), mask=exists)
    tl.store(top_k + index, tl.load(row + TOP_K, mask=is_real, other=0), mask=exists)
    tl.store(min_p + index, tl.load(row + MIN_P, mask=is_real, other=0), mask=exists)
    tl.store(top_p + index, _load_two(row + TOP_P, is_real), mask=exists)


@dataclass(frozen=True, slots=True)
class TokenInputs:
    """Inputs of the model for some tokens."""

    tokens: Tensor
    """``[T]`` int64."""
    positions: Tensor
    """``[T]`` int64."""
    slots: Tensor
    """``[groups, T]`` int64: slots of their keys and values in each group of layers; negative for
    padding."""


def locate_tokens(
    table: RowTable, tokens: Tensor, positions: Tensor, rows: Tensor, block_size: int
) -> TokenInputs:
    """Look up the slots of tokens, and the tokens that only the table has.

    Args:
        table: the table that holds the requests.
        tokens: ``[T]`` int32: token ids. Negative: the token that the request sampled last.
        positions: ``[T]`` int32: position of each token in its request.
        rows: ``[T]`` int32: row of each token's request, or the padding row.
        block_size: number of tokens per block.
    """
    n = len(tokens)
    ids, out_positions = tokens.new_empty(2, n, dtype=torch.int64)
    slots = tokens.new_empty(table.num_groups, n, dtype=torch.int64)
    _locate_kernel[(triton.cdiv(n, 128),)](
        table.cells, table.cells.stride(0), tokens, positions, rows, ids, out_positions, slots, n,
        table.padding_row, block_size, table.num_blocks, TOKEN=TOKEN, FIRST_BLOCK=FIRST_BLOCK,
        GROUPS=table.num_groups, BLOCK=128,
        **launch_options(tokens),
    )  # fmt: skip
    return TokenInputs(ids, out_positions, slots)


@triton.jit(
    do_not_specialize=["n", "padding_row"],
    do_not_specialize_on_alignment=["ids", "out_positions", "slots"],
)
def _locate_kernel(
    cells,
    width,
    tokens,
    positions,
    rows,
    ids,
    out_positions,
    slots,
    n,
    padding_row,
    block_size,
    num_blocks,
    TOKEN: tl.constexpr,
    FIRST_BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_previous(EARLY)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = index < n
    row = tl.load(rows + index, mask=exists, other=0)
    is_real = exists & (row != padding_row)
    row_start = cells + row.to(tl.int64) * width
    token = tl.load(tokens + index, mask=is_real, other=0)
    sampled = _last_token(row_start, is_real, TOKEN)
    position = tl.load(positions + index, mask=is_real, other=0)
    tl.store(ids + index, tl.where(token < 0, sampled, token).to(tl.int64), mask=exists)
    tl.store(out_positions + index, position.to(tl.int64), mask=exists)
    for group in tl.static_range(GROUPS):
        table = row_start + group * num_blocks
        slot = _slot_of(table, position, block_size, is_real, FIRST_BLOCK)
        tl.store(slots + group * n + index, slot, mask=exists)


@triton.jit
def _slot_of(table, position, block_size, is_real, FIRST_BLOCK: tl.constexpr):
    """Return the slot of a position, as ``slots`` in ``step/batch.py`` does; -1 for padding."""
    block = tl.load(table + FIRST_BLOCK + position // block_size, mask=is_real, other=0)
    slot = block.to(tl.int64) * block_size + position % block_size
    return tl.where(is_real, slot, -1)


@triton.jit
def _last_token(row, is_real, TOKEN: tl.constexpr):
    """Return the token that a row sampled last; 0 for ``NO_TOKEN``.

    After ``NO_TOKEN``, a request is computed once more, before the CPU knows that it has ended.
    """
    return tl.maximum(tl.load(row + TOKEN, mask=is_real, other=0), 0)


@triton.jit
def _load_two(cells, mask):
    """Load two cells as an int64; the second is the higher half."""
    low = tl.load(cells, mask=mask, other=0).to(tl.uint32, bitcast=True).to(tl.int64)
    return (tl.load(cells + 1, mask=mask, other=0).to(tl.int64) << 32) | low


def end_step(table: RowTable, order: Tensor, tokens: Tensor) -> None:
    """Write the token that each of the rows has sampled, and advance the row's position."""
    _end_kernel[(triton.cdiv(len(order), 128),)](
        table.cells, table.cells.stride(0), order, tokens, len(order),
        TOKEN=TOKEN, POSITION=POSITION, BLOCK=128, **launch_options(order),
    )  # fmt: skip


@triton.jit(do_not_specialize=["n"])
def _end_kernel(
    cells,
    width,
    order,
    tokens,
    n,
    TOKEN: tl.constexpr,
    POSITION: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_previous(EARLY)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = index < n
    row = cells + tl.load(order + index, mask=exists, other=0).to(tl.int64) * width
    position = tl.load(row + POSITION, mask=exists, other=-1)
    is_real = position >= 0
    tl.store(row + TOKEN, tl.load(tokens + index, mask=is_real, other=0).to(tl.int32), mask=is_real)
    tl.store(row + POSITION, position + 1, mask=is_real)
