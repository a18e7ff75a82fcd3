"""Grouped products with experts in FP8, on tensor cores that multiply FP8.

The lists of pairs and the tiles are those of ``grouped``. Both operands are in FP8: activations are
rounded first, with one scale per token and group of columns (see ``fp8``). If the weights have
scales per block, the sum over each 128 columns gets its own two factors; else the whole sum does.

Bytes: half of those of ``grouped``. FLOPs: as many, at twice the rate.

Source: DeepSeek-V3, 2024, https://arxiv.org/abs/2412.19437, section 3.3.2.
"""

import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.model.kernels.activation import gate_options
from minimal_vllm.model.kernels.fp8 import BLOCK, quantize_inputs
from minimal_vllm.model.kernels.grouped import (
    Tiles,
    find_expert,
    load_pairs,
    load_tile,
    store_tile,
)
from minimal_vllm.model.kernels.matrices import Matrices
from minimal_vllm.model.kernels.route import ExpertLists
from minimal_vllm.model.supported import Gate


def choose_tiles(pairs: int, num_experts: int, *, gated: bool) -> Tiles:
    """Return the tiles for ``pairs`` of tokens and experts.

    Args:
        pairs: number of pairs of a token and an expert.
        num_experts: number of experts.
        gated: whether a program multiplies with two matrices, gate and up.
    """
    mean = pairs / num_experts
    if mean <= 8:
        return Tiles(16, 64, BLOCK, 4, 4)
    if mean <= 24:
        return Tiles(32, 64, BLOCK, 4, 4)
    if mean <= 64:
        return Tiles(64, 64 if gated else 128, BLOCK, 4, 4)
    return Tiles(128, 64 if gated else 128, BLOCK, 8, 4)


def gated_fp8_product(
    x: Tensor, lists: ExpertLists, per_token: int, gate_up: Matrices, gate: Gate
) -> Tensor:
    """Return what ``gated_grouped_product`` returns, for matrices in FP8."""
    inner = gate_up.out_size // 2
    out = x.new_empty(len(x), per_token, inner)
    tiles = choose_tiles(len(x) * per_token, len(lists.counts), gated=True)
    _launch(x, None, lists, per_token, gate_up, out, tiles, gate)
    return out


def weighted_fp8_product(
    inner: Tensor, weights: Tensor, lists: ExpertLists, down: Matrices
) -> Tensor:
    """Return what ``weighted_grouped_product`` returns, for matrices in FP8."""
    tokens, per_token, in_size = inner.shape
    out = inner.new_empty(per_token, tokens, down.out_size)
    tiles = choose_tiles(tokens * per_token, len(lists.counts), gated=False)
    _launch(inner.view(-1, in_size), weights, lists, per_token, down, out, tiles, None)
    return out


def _launch(
    x: Tensor,
    weights: Tensor | None,
    lists: ExpertLists,
    per_token: int,
    matrices: Matrices,
    out: Tensor,
    tiles: Tiles,
    gate: Gate | None,
) -> None:
    count, tokens = lists.members.shape
    pairs, in_size = tokens * per_token, x.shape[1]
    scales = matrices.scales
    if scales is None:
        raise ValueError("matrices in FP8 have scales")
    by_block = scales.columns < in_size
    inputs, input_scales = quantize_inputs(x, BLOCK if by_block else in_size)
    # Each expert's last block may be partly empty, all others are full.
    max_blocks = pairs // tiles.rows + min(count, pairs)
    _grouped_fp8_kernel[(max_blocks * triton.cdiv(out.shape[-1], tiles.columns),)](
        inputs,
        input_scales,
        input_scales if weights is None else weights,
        lists.counts,
        lists.members,
        out,
        tokens,
        matrices.numbers,
        scales.values,
        COUNT=count,
        COUNTS=triton.next_power_of_2(count),
        PER_TOKEN=per_token,
        IN=in_size,
        OUT=out.shape[-1],
        SCALE_ROWS=scales.rows,
        BY_BLOCK=by_block,
        ROWS=tiles.rows,
        COLUMNS=tiles.columns,
        DEPTH=tiles.depth,
        GATED=gate is not None,
        **gate_options(gate or "silu"),  # without a gate, they are not read
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        **launch_options(x),
    )


@triton.jit(do_not_specialize=["tokens"])
def _grouped_fp8_kernel(
    x,
    x_scales,
    weights,
    counts,
    members,
    out,
    tokens,
    matrices,
    scales,
    COUNT: tl.constexpr,
    COUNTS: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    BY_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LIMIT: tl.constexpr,
    SLOPE: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_previous(EARLY)
    COLUMN_TILES: tl.constexpr = tl.cdiv(OUT, COLUMNS)
    GROUPS: tl.constexpr = tl.cdiv(IN, DEPTH) if BY_BLOCK else 1
    block = tl.program_id(0) // COLUMN_TILES
    column = tl.program_id(0) % COLUMN_TILES * COLUMNS + tl.arange(0, COLUMNS)
    # Columns that don't exist repeat the first, so that no load needs a mask.
    safe_column = tl.where(column < OUT, column, 0) if OUT % COLUMNS else column
    expert, first, count = find_expert(counts, block, COUNT, COUNTS, ROWS)
    if expert == COUNT:
        return
    pair, is_row = load_pairs(members + expert * tokens, first, count, ROWS)
    row = (pair // PER_TOKEN if GATED else pair).to(tl.int64)
    inner = tl.arange(0, DEPTH)
    x_pointers = x + row[:, None] * IN + inner[None, :]
    of_matrix = expert.to(tl.int64) * (2 * OUT if GATED else OUT) + safe_column
    pointers = matrices + of_matrix[None, :] * IN + inner[:, None]  # transposed
    scales_at = scales + of_matrix // SCALE_ROWS * GROUPS
    up_scales_at = scales + (of_matrix + OUT) // SCALE_ROWS * GROUPS
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    ups = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, IN, DEPTH):
        xs = load_tile(x_pointers + start, inner[None, :], IN - start, IN % DEPTH == 0)
        some = load_tile(pointers + start, inner[:, None], IN - start, IN % DEPTH == 0)
        x_scale = 1.0
        if BY_BLOCK:
            x_scale = tl.load(x_scales + row * GROUPS + start // DEPTH)[:, None]
        total += _scaled(tl.dot(xs, some), x_scale, scales_at + start // DEPTH, BY_BLOCK)
        if GATED:
            some = load_tile(
                pointers + OUT * IN + start, inner[:, None], IN - start, IN % DEPTH == 0
            )
            ups += _scaled(tl.dot(xs, some), x_scale, up_scales_at + start // DEPTH, BY_BLOCK)
    if not BY_BLOCK:
        x_scale = tl.load(x_scales + row)[:, None]
        total = _scaled(total, x_scale, scales_at, True)
        ups = _scaled(ups, x_scale, up_scales_at, True) if GATED else ups
    store_tile(
        out, total, ups, weights, pair, is_row, column, tokens, PER_TOKEN, OUT, GATED,
        ACTIVATION, LIMIT, SLOPE,
    )  # fmt: skip


@triton.jit
def _scaled(product, x_scale, scales_at, IS_TRUE: tl.constexpr):
    """Return a product times the scales of its rows and columns, if it is to be scaled now."""
    if IS_TRUE:
        product *= x_scale * tl.load(scales_at)[None, :]
    return product
