"""The beginning and the end of a step, on the table of requests; see ``row_table``."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.engine.row_table import (
    FIRST_BLOCK,
    POSITION,
    PROMPT_LENGTH,
    SEED,
    TEMPERATURE,
    TOKEN,
    RowTable,
)
from minimal_vllm.launch import launch_options, wait_for_previous


@dataclass(frozen=True, slots=True)
class RowInputs:
    """What the model and the sampler want to know of some rows."""

    tokens: Tensor
    """``[N]`` int64."""
    positions: Tensor
    """``[N]`` int64: theirs."""
    slots: Tensor
    """``[N]`` int64: where their keys and values go; negative for padding."""
    seq_lens: Tensor
    """``[N]`` int32: tokens in the cache, these included; 0 for padding."""
    temperature: Tensor
    """``[N]`` float32."""
    seeds: Tensor
    """``[N]`` int64."""
    places: Tensor
    """``[N]`` int64: of the tokens that follow these, in their outputs."""


def begin_step(table: RowTable, order: Tensor, block_size: int) -> RowInputs:
    """Look up some rows.

    Args:
        table: has them.
        order: ``[N]`` int32: which.
        block_size: tokens per block.
    """
    n = len(order)
    tokens, positions, slots, seeds, places = order.new_empty(5, n, dtype=torch.int64)
    seq_lens, temperature = torch.empty_like(order), order.new_empty(n, dtype=torch.float32)
    _begin_kernel[(triton.cdiv(n, 32),)](
        table.cells, table.cells.stride(0), order, tokens, positions, slots, seq_lens,
        temperature.view(torch.int32), seeds, places, n, block_size,
        TOKEN=TOKEN, POSITION=POSITION, PROMPT_LENGTH=PROMPT_LENGTH, TEMPERATURE=TEMPERATURE,
        SEED=SEED, FIRST_BLOCK=FIRST_BLOCK, BLOCK=32, num_warps=1, **launch_options(order),
    )  # fmt: skip
    return RowInputs(tokens, positions, slots, seq_lens, temperature, seeds, places)


@triton.jit(
    do_not_specialize=["n"],
    do_not_specialize_on_alignment=[
        *("tokens", "positions", "slots", "seq_lens", "temperature", "seeds", "places")
    ],
)
def _begin_kernel(
    cells,
    width,
    order,
    tokens,
    positions,
    slots,
    seq_lens,
    temperature,
    seeds,
    places,
    n,
    block_size,
    TOKEN: tl.constexpr,
    POSITION: tl.constexpr,
    PROMPT_LENGTH: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    SEED: tl.constexpr,
    FIRST_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_previous(EARLY)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = index < n
    row = cells + tl.load(order + index, mask=exists, other=0).to(tl.int64) * width
    position = tl.load(row + POSITION, mask=exists, other=-1)
    is_real = position >= 0
    block = tl.load(row + FIRST_BLOCK + position // block_size, mask=is_real, other=0)
    slot = block.to(tl.int64) * block_size + position % block_size
    # After NO_TOKEN a request is computed once more, before the CPU knows that it has ended.
    token = tl.maximum(tl.load(row + TOKEN, mask=is_real, other=0), 0)
    tl.store(tokens + index, token.to(tl.int64), mask=exists)
    tl.store(positions + index, tl.maximum(position, 0).to(tl.int64), mask=exists)
    tl.store(slots + index, tl.where(is_real, slot, -1), mask=exists)
    tl.store(seq_lens + index, position + 1, mask=exists)
    tl.store(temperature + index, tl.load(row + TEMPERATURE, mask=is_real, other=0), mask=exists)
    low = tl.load(row + SEED, mask=is_real, other=0).to(tl.uint32, bitcast=True).to(tl.int64)
    high = tl.load(row + SEED + 1, mask=is_real, other=0).to(tl.int64)
    tl.store(seeds + index, (high << 32) | low, mask=exists)
    place = position + 1 - tl.load(row + PROMPT_LENGTH, mask=is_real, other=0)
    tl.store(places + index, place.to(tl.int64), mask=exists)


@dataclass(frozen=True, slots=True)
class TokenInputs:
    """What the model wants to know of some tokens."""

    tokens: Tensor
    """``[T]`` int64."""
    positions: Tensor
    """``[T]`` int64."""
    slots: Tensor
    """``[T]`` int64: where their keys and values go; negative for padding."""


def place_tokens(
    table: RowTable, tokens: Tensor, positions: Tensor, rows: Tensor, block_size: int
) -> TokenInputs:
    """Find the slots of any tokens, and those tokens that only the table knows.

    Args:
        table: has their requests.
        tokens: ``[T]`` int32; negative: the one that its request has sampled last.
        positions: ``[T]`` int32: in their requests.
        rows: ``[T]`` int32: their requests', or nobody's.
        block_size: tokens per block.
    """
    n = len(tokens)
    ids, places, slots = tokens.new_empty(3, n, dtype=torch.int64)
    _place_kernel[(triton.cdiv(n, 128),)](
        table.cells, table.cells.stride(0), tokens, positions, rows, ids, places, slots, n,
        table.nobody, block_size, TOKEN=TOKEN, FIRST_BLOCK=FIRST_BLOCK, BLOCK=128,
        **launch_options(tokens),
    )  # fmt: skip
    return TokenInputs(ids, places, slots)


@triton.jit(
    do_not_specialize=["n", "nobody"],
    do_not_specialize_on_alignment=["ids", "places", "slots"],
)
def _place_kernel(
    cells,
    width,
    tokens,
    positions,
    rows,
    ids,
    places,
    slots,
    n,
    nobody,
    block_size,
    TOKEN: tl.constexpr,
    FIRST_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_previous(EARLY)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = index < n
    row = tl.load(rows + index, mask=exists, other=0)
    is_real = exists & (row != nobody)
    row_start = cells + row.to(tl.int64) * width
    token = tl.load(tokens + index, mask=is_real, other=0)
    sampled = tl.maximum(tl.load(row_start + TOKEN, mask=is_real, other=0), 0)
    position = tl.load(positions + index, mask=is_real, other=0)
    block = tl.load(row_start + FIRST_BLOCK + position // block_size, mask=is_real, other=0)
    slot = block.to(tl.int64) * block_size + position % block_size
    tl.store(ids + index, tl.where(token < 0, sampled, token).to(tl.int64), mask=exists)
    tl.store(places + index, position.to(tl.int64), mask=exists)
    tl.store(slots + index, tl.where(is_real, slot, -1), mask=exists)


def end_step(table: RowTable, order: Tensor, tokens: Tensor) -> None:
    """Each of these rows has sampled a token, and has one more in the cache."""
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
