"""Products with weights in 4-bit integers, which are dequantized in registers.

With a single token, a product takes as long as reading the weights, here a quarter of 16-bit ones.
A program multiplies some rows, in tiles of groups (see ``quantization/int4`` for the layout)::

    packed [out, in / 2]   tile [ROWS, GROUPS, BYTES]      BYTES: a group's bytes, or a part of them
    scale  [out, groups]        [ROWS, GROUPS]             one load for all of them
    x      [in]                 [GROUPS, BYTES] twice      for the low and the high halves of bytes

The integers are multiplied first, and the zero point is subtracted from the sum of a byte's two
products: ``scale * (low * x_low + high * x_high - zero * (x_low + x_high))``.

With more tokens, ``int4_product`` dequantizes a tile of the weights and multiplies it on tensor
cores. Source: Frantar et al. 2024, *Marlin*, https://arxiv.org/abs/2408.11743, whose kernel does
so for batches.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor, float32

from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.model.kernels.activation import ACTIVATIONS, gated
from minimal_vllm.model.quantization.int4 import HALF, SYMMETRIC_ZERO, Int4Weight

ROWS = 4
"""Rows per program of the product with a single token."""
BYTES = 1024
"""Bytes of each row that such a program loads per iteration."""
COLUMNS = 64
"""Columns of the output per program of the product with several tokens."""
MOST_TOKENS = 64
"""Maximum number of tokens per program of that product."""

_HALF = tl.constexpr(HALF)
_ZERO = tl.constexpr(SYMMETRIC_ZERO)


def int4_matvec(
    residual: Tensor,
    weight: Int4Weight,
    bias: Tensor | None,
    *,
    x: Tensor | None = None,
    total: Tensor | None = None,
    norm: tuple[Tensor, float] | None = None,
    activation: str | None = None,
) -> Tensor:
    """Compute ``total = residual + x``; return the product of its norm with a weight.

    Args:
        residual: ``[1, in]``, contiguous.
        weight: matrix ``[out, in]``.
        bias: ``[out]`` or None.
        x: ``[1, in]``, contiguous, or None: nothing is added.
        total: ``[1, in]``, written if ``x`` is not None.
        norm: weight ``[in]`` and epsilon of the norm. None: the sum is not normalized.
        activation: a key of ``ACTIVATIONS``: the first half of the product is the gate of the
            second. None: no gate.

    Returns:
        ``[1, out]``, or ``[1, out / 2]`` if gated.
    """
    out_size, in_size = weight.out_size, weight.in_size
    if activation is not None:
        out_size //= 2
    y = residual.new_empty(1, out_size)
    width = _group_width(weight)
    groups = min(2 * BYTES // width, triton.next_power_of_2(in_size // width))
    _int4_matvec_kernel[(triton.cdiv(out_size, ROWS),)](
        residual, residual if x is None else x, residual if total is None else total,
        norm[0] if norm else residual, y if bias is None else bias, y, norm[1] if norm else 0.0,
        **_tensors(weight), OUT=out_size, IN=in_size, ROWS=ROWS, GROUPS=groups, WIDTH=width,
        BIAS=bias is not None, NORM=norm is not None, ADDS=x is not None,
        ACTIVATION=None if activation is None else ACTIVATIONS[activation],
        num_warps=8, **launch_options(residual),
    )  # fmt: skip
    return y


def int4_product(x: Tensor, weight: Int4Weight, bias: Tensor | None) -> Tensor:
    """Return ``x @ weight.T + bias`` for some tokens, whose columns are in the weight's order.

    Args:
        x: ``[T, in]``, contiguous.
        weight: matrix ``[out, in]``.
        bias: ``[out]`` or None.

    Returns:
        ``[T, out]``
    """
    tokens, out_size, in_size = len(x), weight.out_size, weight.in_size
    y = x.new_empty(tokens, out_size)
    rows = min(max(16, triton.next_power_of_2(tokens)), MOST_TOKENS)
    _int4_product_kernel[(triton.cdiv(out_size, COLUMNS), triton.cdiv(tokens, rows))](
        x, y if bias is None else bias, y, tokens,
        **_tensors(weight, ordered=False), OUT=out_size, IN=in_size, ROWS=rows, COLUMNS=COLUMNS,
        WIDTH=_group_width(weight), BIAS=bias is not None,
        PRECISION="ieee" if x.dtype == float32 else "tf32",
        num_warps=4, num_stages=4, **launch_options(x),
    )  # fmt: skip
    return y


def int4_dequantize(weight: Int4Weight, like: Tensor) -> Tensor:
    """Return the matrix, ``[out, in]``, in the dtype of ``like``, its columns in their order."""
    out = like.new_empty(weight.out_size, weight.in_size)
    width = _group_width(weight)
    groups = min(2 * BYTES // width, triton.next_power_of_2(weight.in_size // width))
    tiles = triton.cdiv(weight.in_size, groups * width)
    _int4_dequantize_kernel[(weight.out_size, tiles)](
        out, **_tensors(weight, ordered=False), IN=weight.in_size, GROUPS=groups, WIDTH=width,
        num_warps=4, **launch_options(like),
    )  # fmt: skip
    return out


def _group_width(weight: Int4Weight) -> int:
    """Return the columns that a tile treats as a group: at most 128, as registers are few."""
    size = weight.group_size
    return next(each for each in (128, 64, 32) if size % each == 0)


def _tensors(weight: Int4Weight, *, ordered: bool = True) -> dict[str, Any]:
    zero, order = weight.zero, weight.order if ordered else None
    tensors = {
        "packed": weight.packed,
        "scale": weight.scale,
        "zero": weight.scale if zero is None else zero,
        "GROUP": weight.group_size,
        "ZEROS": zero is not None,
    }
    if ordered:
        tensors |= {"order": weight.scale if order is None else order, "ORDERED": order is not None}
    return tensors


@triton.jit
def _int4_matvec_kernel(
    residual,
    x,
    new_residual,
    norm_weight,
    bias,
    y,
    eps,
    packed,
    scale,
    zero,
    order,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    ZEROS: tl.constexpr,
    ORDERED: tl.constexpr,
    BIAS: tl.constexpr,
    NORM: tl.constexpr,
    ADDS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    EARLY: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = row < OUT
    GATES: tl.constexpr = ACTIVATION is not None
    HALVES: tl.constexpr = WIDTH // 2
    wait_for_previous(EARLY)
    squares = tl.zeros([GROUPS, HALVES], tl.float32)
    products = tl.zeros([ROWS, GROUPS, HALVES], tl.float32)
    up_products = tl.zeros([ROWS, GROUPS, HALVES], tl.float32)
    byte = tl.arange(0, HALVES)
    for start in tl.static_range(0, IN // WIDTH, GROUPS):
        group = start + tl.arange(0, GROUPS)
        column = (group * WIDTH)[:, None] + (byte // _HALF * 2 * _HALF + byte % _HALF)[None, :]
        exists = column < IN
        low, low_square = _input(residual, x, new_residual, norm_weight, order, column,
                                 exists, NORM, ADDS, ORDERED)  # fmt: skip
        high, high_square = _input(residual, x, new_residual, norm_weight, order, column + _HALF,
                                   exists, NORM, ADDS, ORDERED)  # fmt: skip
        squares += low_square + high_square
        products += _multiply(packed, scale, zero, row, is_row, group, byte, low, high,
                              IN, WIDTH, GROUP, ZEROS)  # fmt: skip
        if GATES:
            up_products += _multiply(packed, scale, zero, OUT + row, is_row, group, byte, low, high,
                                     IN, WIDTH, GROUP, ZEROS)  # fmt: skip
    # A norm is one factor for the whole vector, so it can be applied after the product.
    factor = tl.rsqrt(tl.sum(squares) / IN + eps) if NORM else 1.0
    result = tl.sum(tl.sum(products, 2), 1) * factor
    if BIAS:
        result += tl.load(bias + row, mask=is_row, other=0.0).to(tl.float32)
    result = result.to(y.dtype.element_ty)
    if GATES:
        up_result = tl.sum(tl.sum(up_products, 2), 1) * factor
        if BIAS:
            up_result += tl.load(bias + OUT + row, mask=is_row, other=0.0).to(tl.float32)
        result = gated(result, up_result.to(y.dtype.element_ty), ACTIVATION)
    tl.store(y + row, result, mask=is_row)


@triton.jit
def _input(
    residual,
    x,
    new_residual,
    norm_weight,
    order,
    column,
    exists,
    NORM: tl.constexpr,
    ADDS: tl.constexpr,
    ORDERED: tl.constexpr,
):
    """Return the inputs of some columns, times the norm's weight, and the inputs' squares."""
    if ORDERED:
        column = tl.load(order + column, mask=exists, other=0)
    part = tl.load(residual + column, mask=exists, other=0.0)
    if ADDS:
        part += tl.load(x + column, mask=exists, other=0.0)
        written = tl.where(tl.program_id(0) == 0, exists, False)  # only by the first program
        tl.store(new_residual + column, part, mask=written)
    wide = part.to(tl.float32)
    squares = wide * wide
    if NORM:
        wide *= tl.load(norm_weight + column, mask=exists, other=0.0).to(tl.float32)
    return wide, squares


@triton.jit
def _multiply(
    packed,
    scale,
    zero,
    row,
    is_row,
    group,
    byte,
    low,
    high,
    IN: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    ZEROS: tl.constexpr,
):
    """Return the products of some rows with some columns, ``[ROWS, GROUPS, WIDTH / 2]``."""
    start = row.to(tl.int64)[:, None] * (IN // 2) + (group * (WIDTH // 2))[None, :]
    exists = is_row[:, None] & (group * WIDTH < IN)[None, :]
    numbers_at = packed + start[:, :, None] + byte[None, None, :]
    numbers = tl.load(numbers_at, mask=exists[:, :, None], other=0)
    numbers = numbers.to(tl.int32)
    of_group = row[:, None] * (IN // GROUP) + (group * WIDTH // GROUP)[None, :]
    scales = tl.load(scale + of_group, mask=exists, other=0.0).to(tl.float32)
    products = (numbers & 15).to(tl.float32) * low[None, :, :]
    products += (numbers >> 4).to(tl.float32) * high[None, :, :]
    if ZEROS:
        zeros = tl.load(zero + of_group, mask=exists, other=0).to(tl.float32)
        products -= zeros[:, :, None] * (low + high)[None, :, :]
    else:
        products -= (low + high)[None, :, :] * _ZERO
    return products * scales[:, :, None]


@triton.jit(do_not_specialize=["tokens"])
def _int4_product_kernel(
    x,
    bias,
    y,
    tokens,
    packed,
    scale,
    zero,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    ZEROS: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    byte = tl.arange(0, WIDTH // 2)
    inner = byte // _HALF * 2 * _HALF + byte % _HALF
    is_row, is_column = row < tokens, column < OUT
    wait_for_previous(EARLY)
    x_low = x + row.to(tl.int64)[:, None] * IN + inner[None, :]
    numbers_at = packed + column.to(tl.int64)[None, :] * (IN // 2) + byte[:, None]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, IN, WIDTH):
        low = tl.load(x_low + start, mask=is_row[:, None], other=0.0)
        high = tl.load(x_low + start + _HALF, mask=is_row[:, None], other=0.0)
        numbers = tl.load(numbers_at + start // 2, mask=is_column[None, :], other=0).to(tl.int32)
        of_group = column * (IN // GROUP) + start // GROUP
        scales = tl.load(scale + of_group, mask=is_column, other=0.0).to(tl.float32)
        zeros = tl.full([COLUMNS], _ZERO, tl.float32)
        if ZEROS:
            zeros = tl.load(zero + of_group, mask=is_column, other=0).to(tl.float32)
        low_weight = ((numbers & 15).to(tl.float32) - zeros[None, :]) * scales[None, :]
        high_weight = ((numbers >> 4).to(tl.float32) - zeros[None, :]) * scales[None, :]
        total = tl.dot(low, low_weight.to(low.dtype), total, input_precision=PRECISION)
        total = tl.dot(high, high_weight.to(low.dtype), total, input_precision=PRECISION)
    if BIAS:
        total += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
    offsets = row.to(tl.int64)[:, None] * OUT + column[None, :]
    tl.store(y + offsets, total, mask=is_row[:, None] & is_column[None, :])


@triton.jit
def _int4_dequantize_kernel(
    out,
    packed,
    scale,
    zero,
    IN: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    ZEROS: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_previous(EARLY)
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    byte = tl.arange(0, WIDTH // 2)
    is_group = group * WIDTH < IN
    offsets = (group * (WIDTH // 2))[:, None] + byte[None, :]
    numbers = tl.load(packed + row * (IN // 2) + offsets, mask=is_group[:, None], other=0)
    numbers = numbers.to(tl.int32)
    of_group = row * (IN // GROUP) + group * WIDTH // GROUP
    scales = tl.load(scale + of_group, mask=is_group, other=0.0).to(tl.float32)[:, None]
    zeros = tl.full([GROUPS], _ZERO, tl.float32)
    if ZEROS:
        zeros = tl.load(zero + of_group, mask=is_group, other=0).to(tl.float32)
    column = (group * WIDTH)[:, None] + (byte // _HALF * 2 * _HALF + byte % _HALF)[None, :]
    to = out + row * IN + column
    low = ((numbers & 15).to(tl.float32) - zeros[:, None]) * scales
    high = ((numbers >> 4).to(tl.float32) - zeros[:, None]) * scales
    tl.store(to, low.to(out.dtype.element_ty), mask=is_group[:, None])
    tl.store(to + _HALF, high.to(out.dtype.element_ty), mask=is_group[:, None])
