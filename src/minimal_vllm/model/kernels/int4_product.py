"""Products of several tokens with weights in 4-bit integers, on tensor cores.

A program dequantizes a tile of the weights in registers, and multiplies it with some tokens. With
many tokens, each tile would be dequantized many times, so the whole matrix is, in memory. Source:
Frantar et al. 2024, *Marlin*, https://arxiv.org/abs/2408.11743, whose kernel does so for batches.
"""

import triton
import triton.language as tl
from torch import Tensor, float32

from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.model.kernels.int4 import RUNS, tensors_of
from minimal_vllm.model.quantization.int4 import (
    BITS,
    PER_WORD,
    RUN,
    SYMMETRIC_ZERO,
    WORDS,
    Int4Weight,
)

TILE_ROWS = 64
"""Rows per program of the product with several tokens."""
MOST_TOKENS = 64
"""Maximum number of tokens per program of that product."""
DEPTH = 128
"""Columns that such a program multiplies per iteration."""

_BITS, _PER_WORD = tl.constexpr(BITS), tl.constexpr(PER_WORD)
_RUN, _WORDS = tl.constexpr(RUN), tl.constexpr(WORDS)
_ZERO, _DEPTH = tl.constexpr(SYMMETRIC_ZERO), tl.constexpr(DEPTH)
_MASK = tl.constexpr(15)


def int4_product(x: Tensor, weight: Int4Weight, bias: Tensor | None) -> Tensor:
    """Return ``x @ weight.T + bias`` for some tokens, whose columns are in the weight's order.

    Args:
        x: ``[T, in]``, contiguous.
        weight: matrix ``[out, in]``.
        bias: ``[out]`` or None.

    Returns:
        ``[T, out]``
    """
    num_tokens, out_size = len(x), weight.out_size
    y = x.new_empty(num_tokens, out_size)
    tokens = min(max(16, triton.next_power_of_2(num_tokens)), MOST_TOKENS)
    _int4_product_kernel[(triton.cdiv(out_size, TILE_ROWS), triton.cdiv(num_tokens, tokens))](
        x, y if bias is None else bias, y, num_tokens,
        **tensors_of(weight, ordered=False), OUT=out_size, IN=weight.in_size, ROWS=TILE_ROWS,
        TOKENS=tokens, BIAS=bias is not None, PRECISION="ieee" if x.dtype == float32 else "tf32",
        num_warps=4, num_stages=2 if x.dtype == float32 else 4, **launch_options(x),
    )  # fmt: skip
    return y


def int4_dequantize(weight: Int4Weight, like: Tensor) -> Tensor:
    """Return the matrix, ``[out, in]``, in the dtype of ``like``, its columns in their order."""
    out = like.new_empty(weight.out_size, weight.in_size)
    runs = min(RUNS, triton.next_power_of_2(weight.in_size // RUN))
    _int4_dequantize_kernel[(weight.out_size, triton.cdiv(weight.in_size, runs * RUN))](
        out, **tensors_of(weight, ordered=False), IN=weight.in_size, RUNS=runs,
        num_warps=4, **launch_options(like),
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["num_tokens"])
def _int4_product_kernel(
    x,
    bias,
    y,
    num_tokens,
    packed,
    scale,
    zero,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    GROUP: tl.constexpr,
    ZEROS: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    word = tl.arange(0, _DEPTH // _PER_WORD)
    column = word // _WORDS * _RUN + word % _WORDS
    is_row, is_token = row < OUT, token < num_tokens
    dtype = x.dtype.element_ty
    wait_for_previous(EARLY)
    inputs_at = x + token.to(tl.int64)[None, :] * IN + column[:, None]
    words_at = packed + row.to(tl.int64)[:, None] * (IN // _PER_WORD) + word[None, :]
    total = tl.zeros([ROWS, TOKENS], tl.float32)
    for start in range(0, IN, _DEPTH):
        exists = is_row[:, None] & (start + column < IN)[None, :]
        is_input = (start + column < IN)[:, None] & is_token[None, :]
        words = tl.load(words_at + start // _PER_WORD, mask=exists, other=0)
        of_group = row[:, None] * (IN // GROUP) + ((start + column) // GROUP)[None, :]
        scales = tl.load(scale + of_group, mask=exists, other=0.0)
        zeros = tl.full([ROWS, 1], _ZERO, tl.int32)
        if ZEROS:
            zeros = tl.load(zero + of_group, mask=exists, other=0).to(tl.int32)
        for place in tl.static_range(_PER_WORD):
            inputs = tl.load(inputs_at + start + place * _WORDS, mask=is_input, other=0.0)
            numbers = ((words >> place * _BITS) & _MASK) - zeros
            weights = (numbers.to(tl.float32) * scales.to(tl.float32)).to(dtype)
            total = tl.dot(weights, inputs, total, input_precision=PRECISION)
    if BIAS:
        total += tl.load(bias + row, mask=is_row, other=0.0).to(tl.float32)[:, None]
    at = token.to(tl.int64)[None, :] * OUT + row[:, None]
    tl.store(y + at, total, mask=is_row[:, None] & is_token[None, :])


@triton.jit
def _int4_dequantize_kernel(
    out,
    packed,
    scale,
    zero,
    IN: tl.constexpr,
    RUNS: tl.constexpr,
    GROUP: tl.constexpr,
    ZEROS: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_previous(EARLY)
    row = tl.program_id(0).to(tl.int64)
    run, word = tl.program_id(1) * RUNS + tl.arange(0, RUNS), tl.arange(0, _WORDS)
    is_run = run * _RUN < IN
    words_at = packed + row * (IN // _PER_WORD) + (run * _WORDS)[:, None] + word[None, :]
    words = tl.load(words_at, mask=is_run[:, None], other=0)
    of_group = row * (IN // GROUP) + run * _RUN // GROUP
    scales = tl.load(scale + of_group, mask=is_run, other=0.0).to(tl.float32)[:, None, None]
    zeros = tl.full([RUNS, 1, 1], _ZERO, tl.int32)
    if ZEROS:
        zeros = tl.load(zero + of_group, mask=is_run, other=0).to(tl.int32)[:, None, None]
    shift = (tl.arange(0, _PER_WORD) * _BITS)[None, :, None]
    numbers = ((tl.reshape(words, [RUNS, 1, _WORDS]) >> shift) & _MASK) - zeros
    weights = (numbers.to(tl.float32) * scales).to(out.dtype.element_ty)
    column = tl.program_id(1) * (RUNS * _RUN) + tl.arange(0, RUNS * _RUN)
    tl.store(out + row * IN + column, tl.reshape(weights, [RUNS * _RUN]), mask=column < IN)
