"""Experts of a few tokens: each pair of a token and an expert reads the expert's weights.

One token uses 8 of 128 experts, say, as its router chooses (Shazeer et al., 2017). As in
``matvec``, such a product takes as long as reading the weights, and a program multiplies some rows
of them with a vector in registers. Which rows, it looks up: the choice of experts stays on the GPU,
and so the grid depends on the number of tokens alone::

    gate, up   program (rows, pair)    expert = experts[pair]    inner[pair]  = act(gate x) * up x
    down       program (rows, token)   for each of its experts   y[token]    += weight * down inner

The second kernel adds the experts' results itself, in their order, in float32. Matrices may be in
FP8, with scales as in ``matvec``.

Bytes: the weights of each pair's expert. Tokens that share an expert read it twice, from the L2
cache if they are lucky; from ``MAX_TOKENS`` on, tokens are grouped by expert: see ``grouped``.
"""

import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.model.kernels.activation import combined, gate_options
from minimal_vllm.model.kernels.matrices import Matrices
from minimal_vllm.model.kernels.matvec import row_scale, scaled
from minimal_vllm.model.supported import Gate

MAX_TOKENS = 8
"""Maximum number of tokens: with more, tokens share so many experts that grouping them pays."""
ROWS, WARPS = 4, 4
"""Rows of a program, and its warps."""


def gated_products_of_pairs(
    x: Tensor,
    norm: tuple[Tensor, float] | None,
    experts: Tensor,
    gate_up: Matrices,
    gate: Gate,
) -> Tensor:
    """Return ``activation(gate(x)) * up(x)`` for each pair of a token and one of its experts.

    Args:
        x: ``[T, in]``, contiguous.
        norm: weight and epsilon of an RMSNorm to apply to ``x``; None: there is none.
        experts: ``[T, k]`` int32: experts of each token.
        gate_up: matrices ``[2 * inner, in]``.
        gate: way to combine gate and up.

    Returns:
        ``[T, k, inner]``.
    """
    (tokens, per_token), in_size = experts.shape, x.shape[1]
    inner = gate_up.out_size // 2
    out = x.new_empty(tokens, per_token, inner)
    weight, eps = norm or (x, 0.0)
    _gate_up_kernel[(triton.cdiv(inner, ROWS), tokens * per_token)](
        x, weight, eps, experts, out, **gate_up.options(), **gate_up.scale_options(),
        INTERLEAVED=gate_up.interleaved, INNER=inner, IN=in_size, PER_TOKEN=per_token,
        ROWS=ROWS, COLUMNS=_columns(in_size), NORM=norm is not None, **gate_options(gate),
        num_warps=WARPS, **launch_options(x),
    )  # fmt: skip
    return out


def sums_of_experts(inner: Tensor, experts: Tensor, weights: Tensor, down: Matrices) -> Tensor:
    """Return the weighted sum of the experts' results of each token.

    Args:
        inner: ``[T, k, inner]``, contiguous, from ``gated_products_of_pairs``.
        experts: ``[T, k]`` int32: experts of each token.
        weights: ``[T, k]`` float32: factors of their results.
        down: matrices ``[out, inner]``.

    Returns:
        ``[T, out]``.
    """
    tokens, per_token, in_size = inner.shape
    out_size = down.out_size
    out = inner.new_empty(tokens, out_size)
    _down_kernel[(triton.cdiv(out_size, ROWS), tokens)](
        inner, experts, weights, out, **down.options(), **down.scale_options(),
        OUT=out_size, IN=in_size, PER_TOKEN=per_token, ROWS=ROWS, COLUMNS=_columns(in_size),
        num_warps=WARPS, **launch_options(inner),
    )  # fmt: skip
    return out


def _columns(in_size: int) -> int:
    """Return the number of columns that a program multiplies at a time."""
    return min(1 << (in_size - 1).bit_length(), 2048)


@triton.jit
def _gate_up_kernel(
    x,
    norm_weight,
    eps,
    experts,
    out,
    matrices,
    bias,
    scales,
    BIAS: tl.constexpr,
    SCALES: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    SCALE_COLUMNS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    INNER: tl.constexpr,
    IN: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    NORM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LIMIT: tl.constexpr,
    SLOPE: tl.constexpr,
    EARLY: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    pair = tl.program_id(1)
    wait_for_previous(EARLY)
    first = tl.load(experts + pair).to(tl.int64) * (2 * INNER)
    gate_row = 2 * row if INTERLEAVED else row
    up_row = gate_row + (1 if INTERLEAVED else INNER)
    is_row = row < INNER
    squares = tl.zeros([COLUMNS], tl.float32)
    gate = tl.zeros([ROWS, COLUMNS], tl.float32)
    up = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in tl.static_range(0, IN, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        some_gates = _weights(matrices, first, gate_row, is_row, start, IN, COLUMNS)
        some_ups = _weights(matrices, first, up_row, is_row, start, IN, COLUMNS)
        part = tl.load(x + pair // PER_TOKEN * IN + column, mask=column < IN, other=0.0)
        wide = part.to(tl.float32)
        if NORM:
            squares += wide * wide
            wide *= tl.load(norm_weight + column, mask=column < IN, other=0.0).to(tl.float32)
        own = first + tl.program_id(0) * ROWS  # matrices with scales aren't interleaved
        gate += some_gates.to(tl.float32) * scaled(
            wide, scales, own, column, IN, SCALES, SCALE_ROWS, SCALE_COLUMNS
        )
        up += some_ups.to(tl.float32) * scaled(
            wide, scales, own + INNER, column, IN, SCALES, SCALE_ROWS, SCALE_COLUMNS
        )
    # A norm is one factor for the whole vector, so it can be applied after the product.
    scale = tl.rsqrt(tl.sum(squares) / IN + eps) if NORM else 1.0
    gate_sum = tl.sum(gate, 1) * scale * row_scale(scales, first + gate_row, is_row, SCALES)
    up_sum = tl.sum(up, 1) * scale * row_scale(scales, first + up_row, is_row, SCALES)
    if BIAS:
        gate_sum += tl.load(bias + first + gate_row, mask=is_row, other=0.0).to(tl.float32)
        up_sum += tl.load(bias + first + up_row, mask=is_row, other=0.0).to(tl.float32)
    kind = out.dtype.element_ty
    result = combined(gate_sum.to(kind), up_sum.to(kind), ACTIVATION, LIMIT, SLOPE)
    tl.store(out + pair * INNER + row, result, mask=is_row)


@triton.jit
def _down_kernel(
    inner,
    experts,
    weights,
    out,
    matrices,
    bias,
    scales,
    BIAS: tl.constexpr,
    SCALES: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    SCALE_COLUMNS: tl.constexpr,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EARLY: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1)
    wait_for_previous(EARLY)
    products = tl.zeros([ROWS, COLUMNS], tl.float32)
    biases = tl.zeros([ROWS], tl.float32)
    is_row = row < OUT
    for slot in tl.static_range(PER_TOKEN):
        pair = token * PER_TOKEN + slot
        first = tl.load(experts + pair).to(tl.int64) * OUT
        weight = tl.load(weights + pair)
        if BIAS:
            some = tl.load(bias + first + row, mask=is_row, other=0.0)
            biases += weight * some.to(tl.float32)
        for start in tl.static_range(0, IN, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            some = _weights(matrices, first, row, is_row, start, IN, COLUMNS)
            part = tl.load(inner + pair * IN + column, mask=column < IN, other=0.0)
            wide = weight * part.to(tl.float32)
            own = first + tl.program_id(0) * ROWS
            some = some.to(tl.float32) * scaled(
                wide, scales, own, column, IN, SCALES, SCALE_ROWS, SCALE_COLUMNS
            )
            if SCALES == "rows":
                some *= row_scale(scales, first + row, is_row, SCALES)[:, None]
            products += some
    total = (tl.sum(products, 1) + biases).to(out.dtype.element_ty)
    tl.store(out + token * OUT + row, total, mask=is_row)


@triton.jit
def _weights(matrices, first, row, is_row, start, IN: tl.constexpr, COLUMNS: tl.constexpr):
    """Return columns from ``start`` on of some rows of an expert, whose first row is ``first``."""
    column = start + tl.arange(0, COLUMNS)
    exists = is_row[:, None] & (column < IN)[None, :]
    matrix = matrices + first * IN
    return tl.load(matrix + row[:, None] * IN + column[None, :], mask=exists, other=0.0)
