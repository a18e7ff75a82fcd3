"""Grouped products: each expert multiplies all of its tokens at once.

The pairs of a token and an expert are in lists, one for each expert (see ``route``). A program
computes one tile: up to ``rows`` pairs of one expert, and some columns of the result::

    members[0]  ███████░    block 0   ┐                      each block × each tile of columns
    members[1]  ████████    block 1   │  × weights[1]        is a program
                ███░░░░░    block 2   ┘
    members[2]                        no block
    members[3]  █░░░░░░░    block 3

How many blocks an expert has is known to the GPU only, so that steps can be recorded. The grid has
as many programs as any choice of experts can need. Each program adds up the blocks of the experts
before it, finds its own expert, or finds that there is nothing left to do.

A program reads the rows of its tokens where they are, and writes to where they belong: nothing is
sorted or copied. Bytes: the weights of every expert that has a token, once if all of its tokens fit
into one block; FLOPs: ``6 * T * k * hidden * inner``.

Source: Gale et al., *MegaBlocks*, 2022, https://arxiv.org/abs/2211.15841.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor, float32

from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.model.kernels.activation import combined, gate_options
from minimal_vllm.model.kernels.matrices import Matrices
from minimal_vllm.model.kernels.route import ExpertLists
from minimal_vllm.model.supported import Gate


@dataclass(frozen=True, slots=True)
class Tiles:
    """Sizes of a program's tile, and its launch."""

    rows: int
    """Pairs of a token and an expert."""
    columns: int
    """Columns of the result."""
    depth: int
    """Terms of the sum added per iteration."""
    warps: int
    stages: int


def choose_tiles(pairs: int, num_experts: int, *, gated: bool) -> Tiles:
    """Return the tiles for ``pairs`` of tokens and experts: the fastest on an H200.

    Args:
        pairs: number of pairs of a token and an expert.
        num_experts: number of experts.
        gated: whether a program multiplies with two matrices, gate and up.
    """
    mean = pairs / num_experts
    if mean <= 8:
        return Tiles(16, 64, 128, 4, 3)
    if mean <= 24:
        return Tiles(32, 64, 128, 4, 3)
    if mean <= 48:
        return Tiles(64, 64 if gated else 128, 64, 4, 4)
    if not gated:
        return Tiles(128, 256, 64, 8, 3)
    return Tiles(128, 64 if mean <= 128 else 128, 64, 8, 4)


def gated_grouped_product(
    x: Tensor, lists: ExpertLists, per_token: int, gate_up: Matrices, gate: Gate
) -> Tensor:
    """Return ``activation(gate(x)) * up(x)`` for each pair of a token and one of its experts.

    Args:
        x: ``[T, in]``, contiguous.
        lists: the pairs of each expert.
        per_token: number of experts of a token, k.
        gate_up: matrices ``[2 * inner, in]``.
        gate: way to combine gate and up.

    Returns:
        ``[T, k, inner]``.
    """
    inner = gate_up.out_size // 2
    out = x.new_empty(len(x), per_token, inner)
    tiles = choose_tiles(len(x) * per_token, len(lists.counts), gated=True)
    _launch(x, None, lists, per_token, gate_up, out, inner, tiles, gate)
    return out


def weighted_grouped_product(
    inner: Tensor, weights: Tensor, lists: ExpertLists, down: Matrices
) -> Tensor:
    """Return the weighted results of each token's experts, which are still to be added.

    Args:
        inner: ``[T, k, inner]``, contiguous, from ``gated_grouped_product``.
        weights: ``[T, k]`` float32: factors of the experts' results.
        lists: the pairs of each expert.
        down: matrices ``[out, inner]``.

    Returns:
        ``[k, T, out]``: the result of each token's n-th expert.
    """
    tokens, per_token, _ = inner.shape
    out = inner.new_empty(per_token, tokens, down.out_size)
    tiles = choose_tiles(tokens * per_token, len(lists.counts), gated=False)
    _launch(inner, weights, lists, per_token, down, out, down.out_size, tiles, None)
    return out


def _launch(
    x: Tensor,
    weights: Tensor | None,
    lists: ExpertLists,
    per_token: int,
    matrices: Matrices,
    out: Tensor,
    out_size: int,
    tiles: Tiles,
    gate: Gate | None,
) -> None:
    count, tokens = lists.members.shape
    pairs = tokens * per_token
    # Each expert's last block may be partly empty, all others are full.
    max_blocks = pairs // tiles.rows + min(count, pairs)
    is_wide = x.dtype == float32
    _grouped_kernel[(max_blocks * triton.cdiv(out_size, tiles.columns),)](
        x,
        lists.counts if weights is None else weights,
        lists.counts,
        lists.members,
        out,
        tokens,
        **matrices.options(),
        INTERLEAVED=matrices.interleaved,
        COUNT=count,
        COUNTS=triton.next_power_of_2(count),
        PER_TOKEN=per_token,
        IN=x.shape[-1],
        OUT=out_size,
        ROWS=tiles.rows,
        COLUMNS=tiles.columns,
        DEPTH=tiles.depth,
        GATED=gate is not None,
        **gate_options(gate or "silu"),  # without a gate, they are not read
        PRECISION="ieee" if is_wide else "tf32",
        num_warps=tiles.warps,
        num_stages=2 if is_wide else tiles.stages,
        **launch_options(x),
    )


@triton.jit(do_not_specialize=["tokens"])
def _grouped_kernel(
    x,
    weights,
    counts,
    members,
    out,
    tokens,
    matrices,
    bias,
    BIAS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    COUNT: tl.constexpr,
    COUNTS: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LIMIT: tl.constexpr,
    SLOPE: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_previous(EARLY)
    COLUMN_TILES: tl.constexpr = tl.cdiv(OUT, COLUMNS)
    block = tl.program_id(0) // COLUMN_TILES
    column = tl.program_id(0) % COLUMN_TILES * COLUMNS + tl.arange(0, COLUMNS)
    # Columns that don't exist repeat the first, so that no load needs a mask.
    safe_column = tl.where(column < OUT, column, 0) if OUT % COLUMNS else column
    expert, first, count = find_expert(counts, block, COUNT, COUNTS, ROWS)
    if expert == COUNT:
        return
    pair, is_row = load_pairs(members + expert * tokens, first, count, ROWS)
    row = pair // PER_TOKEN if GATED else pair
    inner = tl.arange(0, DEPTH)
    x_pointers = x + row.to(tl.int64)[:, None] * IN + inner[None, :]
    HEIGHT: tl.constexpr = 2 * OUT if GATED else OUT
    first_row = expert.to(tl.int64) * HEIGHT
    rows = 2 * safe_column if INTERLEAVED else safe_column
    UP: tl.constexpr = 1 if INTERLEAVED else OUT  # rows from gate to up
    pointers = matrices + first_row * IN + rows[None, :] * IN + inner[:, None]  # transposed
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    ups = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, IN, DEPTH):
        xs = load_tile(x_pointers + start, inner[None, :], IN - start, IN % DEPTH == 0)
        some = load_tile(pointers + start, inner[:, None], IN - start, IN % DEPTH == 0)
        total = tl.dot(xs, some, total, input_precision=PRECISION)
        if GATED:
            up_pointers = pointers + UP * IN
            some = load_tile(up_pointers + start, inner[:, None], IN - start, IN % DEPTH == 0)
            ups = tl.dot(xs, some, ups, input_precision=PRECISION)
    if BIAS:
        total += tl.load(bias + first_row + rows)[None, :].to(tl.float32)
        if GATED:
            ups += tl.load(bias + first_row + rows + UP)[None, :].to(tl.float32)
    store_tile(
        out, total, ups, weights, pair, is_row, column, tokens, PER_TOKEN, OUT, GATED,
        ACTIVATION, LIMIT, SLOPE,
    )  # fmt: skip


@triton.jit
def load_pairs(members, first, count, ROWS: tl.constexpr):  # noqa: ANN201 - Triton's language
    """Return an expert's pairs from place ``first`` on, and which of them exist.

    The others repeat the last, so that loading their rows needs no mask.
    """
    place = first + tl.arange(0, ROWS)
    return tl.load(members + tl.minimum(place, count - 1)), place < count


@triton.jit
def store_tile(  # noqa: ANN201 - Triton's language
    out,
    total,
    ups,
    weights,
    pair,
    is_row,
    column,
    tokens,
    PER_TOKEN: tl.constexpr,
    OUT: tl.constexpr,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LIMIT: tl.constexpr,
    SLOPE: tl.constexpr,
):
    """Store gated products of some pairs, or products times the weights of their experts.

    ``total`` and ``ups`` are ``[ROWS, COLUMNS]`` float32; if gated, products with gate and with up.
    """
    kind = out.dtype.element_ty
    target = pair
    if GATED:
        result = combined(total.to(kind), ups.to(kind), ACTIVATION, LIMIT, SLOPE)
    else:
        weight = tl.load(weights + pair, mask=is_row, other=0.0)
        result = (total * weight[:, None]).to(kind)
        target = pair % PER_TOKEN * tokens + pair // PER_TOKEN
    offsets = target.to(tl.int64)[:, None] * OUT + column[None, :]
    tl.store(out + offsets, result, mask=is_row[:, None] & (column < OUT)[None, :])


@triton.jit
def load_tile(pointers, inner, size, IS_FULL: tl.constexpr):  # noqa: ANN201 - Triton's language
    """Load a tile, whose terms from ``size`` on are zero. Masks cost time: a full tile has none."""
    if IS_FULL:
        return tl.load(pointers)
    return tl.load(pointers, mask=inner < size, other=0.0)


@triton.jit
def find_expert(  # noqa: ANN201 - Triton's language
    counts, block, COUNT: tl.constexpr, COUNTS: tl.constexpr, ROWS: tl.constexpr
):
    """Return a block's expert, or ``COUNT`` if there is none; its first pair's place, and count."""
    expert = tl.arange(0, COUNTS)
    count = tl.load(counts + expert, mask=expert < COUNT, other=0)
    blocks = (count + ROWS - 1) // ROWS
    ends = tl.cumsum(blocks, 0)
    index = tl.minimum(tl.sum((ends <= block).to(tl.int32), 0), COUNT)
    is_mine = expert == index
    first = tl.sum(tl.where(is_mine, block - (ends - blocks), 0), 0) * ROWS
    return index, first, tl.sum(tl.where(is_mine, count, 0), 0)
