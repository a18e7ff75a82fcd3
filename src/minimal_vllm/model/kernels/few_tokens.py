"""Experts of a few tokens: each pair of a token and an expert reads the expert's weights.

One token uses 8 of 128 experts, say, as its router chooses (Shazeer et al., 2017). As in
``matvec``, such a product takes as long as reading the weights, and a program multiplies some rows
of them with a vector in registers. Which rows, it looks up: the choice of experts stays on the GPU,
and so the grid depends on the number of tokens alone::

    gate, up   program (rows, pair)    expert = experts[pair]    inner[pair]  = act(gate x) * up x
    down       program (rows, token)   for each of its experts   y[token]    += weight * down inner

The second kernel adds the experts' results itself, in their order, in float32.

Bytes: the weights of each pair's expert. Tokens that share an expert read it twice, from the L2
cache if they are lucky; from ``MOST_TOKENS`` on, tokens are grouped by expert: see ``grouped``.
"""

import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.model.kernels.activation import ACTIVATIONS, gated

MOST_TOKENS = 8
"""Maximum number of tokens: with more, tokens share so many experts that grouping them pays."""
ROWS, WARPS = 4, 4
"""Rows of a program, and its warps."""


def gated_products_of_pairs(
    x: Tensor,
    norm: tuple[Tensor, float] | None,
    experts: Tensor,
    gate_up: Tensor,
    activation: str,
) -> Tensor:
    """Return ``activation(gate(x)) * up(x)`` for each pair of a token and one of its experts.

    Args:
        x: ``[T, in]``, contiguous.
        norm: weight and epsilon of an RMSNorm to apply to ``x``; None: there is none.
        experts: ``[T, k]`` int32: experts of each token.
        gate_up: ``[E, 2 * inner, in]``, contiguous: gate, then up.
        activation: a key of ``ACTIVATIONS``.

    Returns:
        ``[T, k, inner]``.
    """
    (tokens, per_token), (_, height, in_size) = experts.shape, gate_up.shape
    inner = height // 2
    out = x.new_empty(tokens, per_token, inner)
    weight, eps = norm or (x, 0.0)
    _gate_up_kernel[(triton.cdiv(inner, ROWS), tokens * per_token)](
        x, weight, eps, experts, gate_up, out,
        INNER=inner, IN=in_size, PER_TOKEN=per_token, ROWS=ROWS, COLUMNS=_columns(in_size),
        NORM=norm is not None, ACTIVATION=ACTIVATIONS[activation], num_warps=WARPS,
        **launch_options(x),
    )  # fmt: skip
    return out


def sums_of_experts(inner: Tensor, experts: Tensor, weights: Tensor, down: Tensor) -> Tensor:
    """Return the weighted sum of the experts' results of each token.

    Args:
        inner: ``[T, k, inner]``, contiguous, from ``gated_products_of_pairs``.
        experts: ``[T, k]`` int32: experts of each token.
        weights: ``[T, k]`` float32: factors of their results.
        down: ``[E, out, inner]``, contiguous.

    Returns:
        ``[T, out]``.
    """
    tokens, per_token, in_size = inner.shape
    out_size = down.shape[1]
    out = inner.new_empty(tokens, out_size)
    _down_kernel[(triton.cdiv(out_size, ROWS), tokens)](
        inner, experts, weights, down, out,
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
    gate_up,
    out,
    INNER: tl.constexpr,
    IN: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    NORM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    EARLY: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    pair = tl.program_id(1)
    wait_for_previous(EARLY)
    gates = gate_up + tl.load(experts + pair).to(tl.int64) * (2 * INNER * IN)
    squares = tl.zeros([COLUMNS], tl.float32)
    gate = tl.zeros([ROWS, COLUMNS], tl.float32)
    up = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in tl.static_range(0, IN, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        exists = (row < INNER)[:, None] & (column < IN)[None, :]
        offsets = row[:, None] * IN + column[None, :]
        some_gates = tl.load(gates + offsets, mask=exists, other=0.0)
        some_ups = tl.load(gates + INNER * IN + offsets, mask=exists, other=0.0)
        part = tl.load(x + pair // PER_TOKEN * IN + column, mask=column < IN, other=0.0)
        wide = part.to(tl.float32)
        if NORM:
            squares += wide * wide
            wide *= tl.load(norm_weight + column, mask=column < IN, other=0.0).to(tl.float32)
        gate += some_gates.to(tl.float32) * wide[None, :]
        up += some_ups.to(tl.float32) * wide[None, :]
    # A norm is one factor for the whole vector, so it can be applied after the product.
    scale = tl.rsqrt(tl.sum(squares) / IN + eps) if NORM else 1.0
    kind = out.dtype.element_ty
    result = gated((tl.sum(gate, 1) * scale).to(kind), (tl.sum(up, 1) * scale).to(kind), ACTIVATION)
    tl.store(out + pair * INNER + row, result, mask=row < INNER)


@triton.jit
def _down_kernel(
    inner,
    experts,
    weights,
    down,
    out,
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
    for slot in tl.static_range(PER_TOKEN):
        pair = token * PER_TOKEN + slot
        matrix = down + tl.load(experts + pair).to(tl.int64) * (OUT * IN)
        weight = tl.load(weights + pair)
        for start in tl.static_range(0, IN, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            exists = (row < OUT)[:, None] & (column < IN)[None, :]
            some = tl.load(matrix + row[:, None] * IN + column[None, :], mask=exists, other=0.0)
            part = tl.load(inner + pair * IN + column, mask=column < IN, other=0.0)
            products += some.to(tl.float32) * (weight * part.to(tl.float32))[None, :]
    total = tl.sum(products, 1).to(out.dtype.element_ty)
    tl.store(out + token * OUT + row, total, mask=row < OUT)
