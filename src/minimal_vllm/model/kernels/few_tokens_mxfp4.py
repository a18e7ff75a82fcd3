"""Experts in MXFP4 of a few tokens: each pair of a token and an expert reads the expert's weights.

As in ``few_tokens``, but weights are unpacked in registers and multiplied by tensor cores, as in
``mxfp4``; the vector units are busy with unpacking::

    gate, up   program (bands, pair)    inner[pair] = act(gate x) * up x
    down       program (bands, pair)    y[n, token] = weight * down inner    for the token's n-th

A product on tensor cores has at least 64 rows and, in Triton, 16 vectors, and the next one to the
same sum has to wait for it. A program has few rows, whose columns are cut into parts. It multiplies
all parts at once, each with every vector, of which one is its own. What belongs together lies on
the diagonal, and is added at the end::

                      x[part 0]  x[part 1]  …
    16 rows, part 0   ████       ░░░░
    16 rows, part 1   ░░░░       ████

All of a program's weights and its whole vector are on their way to registers before the first
weight is unpacked. So nothing waits for memory between two products. The weights of ``down`` are
even loaded before ``inner`` is there: only the experts must have been chosen.

Bytes: the weights of each pair's expert.

Source of the weights' order: Frantar et al. 2024, *Marlin*, https://arxiv.org/abs/2408.11743.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.device.launch import launch_options, wait_before_next
from minimal_vllm.model.kernels.activation import combined, gate_options
from minimal_vllm.model.kernels.unpack import AFTER, load_packed, unpacked
from minimal_vllm.model.quantization.mxfp4_fragments import BAND, CHUNK, Fragments
from minimal_vllm.model.supported import Gate

MAX_PAIRS = 16
"""Maximum number of pairs of a token and an expert: with more, grouping them pays."""
PARTS = tl.constexpr(8)
"""Parts of a band's columns: a band has 16 rows, so that a product has 128."""
WARPS, MAX_REGISTERS = 8, 64
"""Warps of a program, and registers of a thread: 4 programs then fit into an SM."""
VECTORS = tl.constexpr(16)
"""Number of vectors of a product, at least that of parts."""
_BAND, _CHUNK = tl.constexpr(BAND), tl.constexpr(CHUNK)


def gated_fragments_of_pairs(x: Tensor, experts: Tensor, gate_up: Fragments, gate: Gate) -> Tensor:
    """Return ``activation(gate(x)) * up(x)`` for each pair of a token and one of its experts.

    Args:
        x: ``[T, in]``, contiguous.
        experts: ``[T, k]`` int32: experts of each token.
        gate_up: matrices ``[2 * inner, in]``.
        gate: way to combine gate and up.

    Returns:
        ``[T, k, inner]``.
    """
    (tokens, per_token), inner = experts.shape, gate_up.out_size // 2
    out = x.new_empty(tokens, per_token, inner)
    _pair_gate_up_kernel[_grid(gate_up, tokens * per_token)](
        x, experts, out, **_options(gate_up, x),
        PER_TOKEN=per_token, INNER=inner, **gate_options(gate),
    )  # fmt: skip
    return out


def weighted_fragments_of_pairs(
    inner: Tensor, experts: Tensor, weights: Tensor, down: Fragments
) -> Tensor:
    """Return the weighted results of each token's experts, which are still to be added.

    Args:
        inner: ``[T, k, inner]``, contiguous, from ``gated_fragments_of_pairs``, whose kernel must
            be the last that was launched.
        experts: ``[T, k]`` int32: experts of each token.
        weights: ``[T, k]`` float32: factors of their results.
        down: matrices ``[out, inner]``.

    Returns:
        ``[k, T, out]`` float32: the result of each token's n-th expert.
    """
    tokens, per_token, _ = inner.shape
    out = inner.new_empty(per_token, tokens, down.out_size, dtype=torch.float32)
    _pair_down_kernel[_grid(down, tokens * per_token)](
        inner, experts, weights, out, tokens, **_options(down, inner),
        PER_TOKEN=per_token, OUT=down.out_size,
    )  # fmt: skip
    return out


def _grid(matrices: Fragments, pairs: int) -> tuple[int, int]:
    return triton.cdiv(matrices.out_size, BAND), pairs


def _options(matrices: Fragments, x: Tensor) -> dict[str, Any]:
    """Return what both kernels are given: the matrices, tile and launch."""
    bias = matrices.bias
    return {
        "words": matrices.words, "scales": matrices.scales,
        "bias": x if bias is None else bias, "BIAS": bias is not None,
        "IN": matrices.in_size, "WIDE": x.dtype != torch.bfloat16,
        "num_warps": WARPS, "maxnreg": MAX_REGISTERS if x.dtype == torch.bfloat16 else None,
        **launch_options(x),
    }  # fmt: skip


@triton.jit
def _pair_gate_up_kernel(
    x,
    experts,
    out,
    words,
    scales,
    bias,
    BIAS: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    IN: tl.constexpr,
    INNER: tl.constexpr,
    WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LIMIT: tl.constexpr,
    SLOPE: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_before_next(EARLY)
    pair = tl.program_id(1)
    expert = tl.load(experts + pair).to(tl.int64)
    vectors = _load_vectors(x + pair // PER_TOKEN * IN, IN)
    pieces, factors = _load_pieces(words, scales, expert, 2 * INNER, IN)
    column = tl.program_id(0) * 8 + tl.arange(0, 8)
    is_column = column < INNER
    bias_of_gate = bias + expert * (2 * INNER) + 2 * column
    gate = _load_bias(bias_of_gate, is_column, BIAS)
    up = _load_bias(bias_of_gate + 1, is_column, BIAS)
    result = _product(vectors, pieces, factors, WIDE)
    gates, ups = tl.split(tl.trans(tl.reshape(result, [2, 8])))
    gate += gates
    up += ups
    kind = out.dtype.element_ty
    result = combined(gate.to(kind), up.to(kind), ACTIVATION, LIMIT, SLOPE)
    tl.store(out + pair * INNER + column, result, mask=is_column)


@triton.jit(do_not_specialize=["tokens"])
def _pair_down_kernel(
    inner,
    experts,
    weights,
    out,
    tokens,
    words,
    scales,
    bias,
    BIAS: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    WIDE: tl.constexpr,
    EARLY: tl.constexpr,
):
    pair = tl.program_id(1)
    token, slot = pair // PER_TOKEN, pair % PER_TOKEN
    # The kernel of gate and up lets this one start only after the experts have been chosen.
    expert, weight = tl.load(experts + pair).to(tl.int64), tl.load(weights + pair)
    pieces, factors = _load_pieces(words, scales, expert, OUT, IN)
    row = tl.program_id(0) * _BAND + tl.arange(0, _BAND)
    is_row = row < OUT
    result = _load_bias(bias + expert * OUT + row, is_row, BIAS)
    wait_before_next(EARLY)
    result += _product(_load_vectors(inner + pair * IN, IN), pieces, factors, WIDE)
    tl.store(out + (slot * tokens + token) * OUT + row, result * weight, mask=is_row)


@triton.jit
def _load_bias(pointers, exists, BIAS: tl.constexpr):
    """Load a bias, in float32; without one, return zeros."""
    if BIAS:
        return tl.load(pointers, mask=exists, other=0.0).to(tl.float32)
    return tl.zeros(exists.shape, tl.float32)


@triton.jit
def _load_pieces(words, scales, expert, HEIGHT: tl.constexpr, IN: tl.constexpr):
    """Load all weights of the program's band of an expert: words and scales of each step.

    A step has one chunk of each part. Pointers of steps differ by constants, which cost nothing.
    """
    ALL_CHUNKS: tl.constexpr = (IN + _CHUNK - 1) // _CHUNK
    first = (expert * ((HEIGHT + _BAND - 1) // _BAND) + tl.program_id(0)) * ALL_CHUNKS
    chunk = tl.arange(0, PARTS)[:, None]
    pieces, factors = (), ()
    for start in tl.static_range(0, ALL_CHUNKS, PARTS):
        exists = start + chunk < ALL_CHUNKS if start + PARTS > ALL_CHUNKS else None
        packed, scale = load_packed(
            words + first * 128 + start * 128, scales + first * 8 + start * 8, chunk, exists
        )
        pieces += (packed,)  # type: ignore[assignment]  # Triton's tuples grow
        factors += (scale,)  # type: ignore[assignment]  # Triton's tuples grow
    return pieces, factors


@triton.jit
def _load_vectors(x, IN: tl.constexpr):
    """Load a vector, in the pieces that each step multiplies: ``[VECTORS, 64]``, a part per row."""
    vector = tl.arange(0, VECTORS)[:, None]
    own_column = vector * _CHUNK + tl.arange(0, _CHUNK)[None, :]
    vectors = ()
    for start in tl.static_range(0, IN, PARTS * _CHUNK):
        exists = (vector < PARTS) & (start + own_column < IN)
        part = tl.load(x + start + own_column, mask=exists, other=0.0)
        vectors += (part,)  # type: ignore[assignment]  # Triton's tuples grow
    return vectors


@triton.jit
def _product(vectors, pieces, factors, WIDE: tl.constexpr):
    """Return the product of the loaded weights with the loaded vector, ``[16]``."""
    total = tl.zeros([PARTS * _BAND, VECTORS], tl.float32)
    for step in tl.static_range(len(pieces)):
        w = unpacked(pieces[step], factors[step], WIDE).to(vectors[step].dtype)
        total = tl.dot(w, vectors[step].T, total, input_precision="ieee")
    products = tl.reshape(total, [PARTS, _BAND, VECTORS])
    is_own = tl.arange(0, PARTS)[:, None, None] == tl.arange(0, VECTORS)[None, None, :]
    result = tl.sum(tl.sum(tl.where(is_own, products, 0.0), 2), 0)
    return result if WIDE else result * AFTER
