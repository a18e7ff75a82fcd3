"""Products of weights with a single token, which take as long as reading the weights.

With one token a product has 1 FLOP per byte of weights; the fastest possible kernel reads each
weight once, at the memory bandwidth. Libraries reach half to three quarters of it, because their
kernels are designed for large tiles. Here a program reads some rows of the weights in long,
contiguous pieces and multiplies them with the token's vector in registers, without tensor cores::

    weights [out, in]   row 0 ────────────►   ×  x  = y[0]
                        row 1 ────────────►         = y[1]

Every program computes the norm before the product itself: the vector is short and in the L2 cache,
and another launch would cost more. At the end of the product, a program can apply the gate of the
feed-forward network: it then multiplies with the rows for ``gate`` and those for ``up``.

Weights in FP8 are read in half the time. Their scales cost next to nothing: that of a row is one
more factor of its result, and those of a block's columns are multiplied into the vector. Behind a
norm, there is too little time to make a float32 number of each weight. So they become pairs of
float16 numbers, with one instruction for two, and are multiplied as such; see ``pairs``.

With two or more tokens tensor cores win (see ``few_rows``): here each weight would be converted to
float32 once per token.

Source of the bound, the roofline model: Williams et al., CACM 2009.
"""

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.model.kernels.activation import ACTIVATIONS, gated
from minimal_vllm.model.kernels.pairs import four_of, powers_of_2, sum_of_pairs

FEW_ROWS = 1024
"""Number of rows of a matrix up to which two tiles of columns, one of them partly empty, are read
as one: all weights are then loaded before the previous kernel has ended. With more rows, the
programs, which are twice as large, would not all run at once."""
MANY_ROWS = 16_384
"""Number of rows of a matrix with up to 1,024 columns from which four warps per program are as fast
as two or faster, as in an LM head."""
LOADED = 16
"""Bytes that a thread loads at once."""
MAX_REGISTERS = 128
"""Maximum number of a thread's registers where pairs are multiplied. 4 programs of 4 warps then fit
into an SM."""
FP8_ROWS = 8
"""Rows per program of a weight in FP8; half as many of each half if there is a gate."""


def _assembly() -> str:
    """Return the program that multiplies 16 weights in FP8 with 16 numbers in float16.

    Operand 0 is the sum. Each of the operands 1 to 4 has 4 weights, and each of 5 to 12 has 2
    numbers of the vector.
    """
    lines = [".reg .b32 pair, sum;", ".reg .b16 low, high;", ".reg .f32 one, other;"]
    for index in range(8):
        vector = f"${5 + index}"
        if index % 2 == 0:
            lines.append(f"mov.b32 {{low, high}}, ${1 + index // 2};")
        lines += [
            f"cvt.rn.f16x2.e4m3x2 pair, {'high' if index % 2 else 'low'};",
            f"fma.rn.f16x2 sum, pair, {vector}, sum;"
            if index
            else f"mul.rn.f16x2 sum, pair, {vector};",
        ]
    return "{" + "\n".join([*lines, *sum_of_pairs("$0", ["sum"])]) + "}"


_MULTIPLY = tl.constexpr(_assembly())
_OPERANDS = tl.constexpr(",".join(["=&f"] + ["r"] * 12))
_TO_PAIR = tl.constexpr("cvt.rn.f16x2.f32 $0, $2, $1;")


def can_use_matvec(x: Tensor) -> bool:
    """Return whether ``x`` is a single token."""
    return len(x) == 1


@dataclass(frozen=True, slots=True)
class Scales:
    """Scales of a matrix in FP8."""

    values: Tensor
    """``[out / rows, ceil(in / columns)]`` float32."""
    rows: int
    """Number of rows that share a scale."""
    columns: int
    """Number of columns that share a scale; the whole row, or a power of two."""

    def are_usable(self, in_size: int) -> bool:
        """Return whether the kernel can read these scales.

        A program reads the scales of one row of blocks only, so blocks must hold whole programs.
        """
        return self._belong_to_rows(in_size) or self.rows % FP8_ROWS == 0

    def options(self, in_size: int) -> dict[str, Any]:
        """Return the kernel's arguments."""
        kind = "rows" if self._belong_to_rows(in_size) else "blocks"
        return {"scales": self.values, "SCALES": kind,
                "SCALE_ROWS": self.rows, "SCALE_COLUMNS": self.columns}  # fmt: skip

    def _belong_to_rows(self, in_size: int) -> bool:
        return self.rows == 1 and self.columns == in_size


def matvec(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor | None = None,
    *,
    scales: Scales | None = None,
    activation: str | None = None,
) -> Tensor:
    """Return ``x @ weight.T + bias``, gated if there is an activation.

    Args:
        x: ``[1, in]``, contiguous.
        weight: ``[out, in]``, contiguous.
        bias: ``[out]`` or None.
        out: ``[1, out]``, overwritten with the result. Default: newly allocated.
        scales: scales of a weight in FP8. None: the weight has none.
        activation: see ``add_norm_matvec``.
    """
    out_size, in_size = weight.shape
    if activation is not None:
        out_size //= 2
    y = x.new_empty(1, out_size) if out is None else out
    rows, columns, warps = _tile(weight, gated=activation is not None)
    if weight.itemsize > 1 and out_size <= FEW_ROWS and columns < in_size < 2 * columns:
        columns, warps = 2 * columns, 2 * warps
    if weight.itemsize > 1 and in_size == 2048 and out_size <= FEW_ROWS:
        rows, warps = 2, 4
    elif weight.itemsize > 1 and in_size == 2048 and out_size <= 4 * FEW_ROWS:
        columns, warps = 1024, 4  # programs that are half as large all run at once
    _matvec_kernel[(triton.cdiv(out_size, rows),)](
        x, x, x, x, weight, weight if bias is None else bias, y, 0.0,
        OUT=out_size, IN=in_size, ROWS=rows, COLUMNS=columns,
        PIECE=min(LOADED // weight.itemsize, columns), HALVES=False,
        BIAS=bias is not None, NORM=False, ADDS=False,
        ACTIVATION=None if activation is None else ACTIVATIONS[activation],
        **scale_options(scales, x, in_size), num_warps=warps, **launch_options(x),
    )  # fmt: skip
    return y


def scale_options(scales: Scales | None, any_tensor: Tensor, in_size: int) -> dict[str, Any]:
    """Return a kernel's arguments for scales, which are not read if there are none."""
    if scales is None:
        return {"scales": any_tensor, "SCALES": None, "SCALE_ROWS": 1, "SCALE_COLUMNS": 1}
    return scales.options(in_size)


def add_norm_matvec(
    residual: Tensor,
    x: Tensor | None,
    total: Tensor,
    norm_weight: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    *,
    activation: str | None = None,
    scales: Scales | None = None,
) -> Tensor:
    """Compute ``total = residual + x``; return the product of its norm with ``weight``.

    Args:
        residual: ``[1, in]``, contiguous; unchanged, because other programs still read it.
        x: ``[1, in]``, contiguous, or None.
        total: ``[1, in]``, contiguous; written. If ``x`` is None, ``residual`` itself, not written.
        norm_weight: ``[in]``.
        eps: constant added to the mean square.
        weight: ``[out, in]``, contiguous.
        bias: ``[out]`` or None.
        activation: a key of ``ACTIVATIONS``: the first half of the product is the gate of the
            second. None: no gate.
        scales: scales of a weight in FP8. None: the weight has none.

    Returns:
        ``[1, out]``, or ``[1, out / 2]`` if gated.
    """
    out_size, in_size = weight.shape
    if activation is not None:
        out_size //= 2
    y = residual.new_empty(1, out_size)
    rows, columns, warps = _tile(weight, gated=activation is not None)
    halves = weight.itemsize == 1 and residual.itemsize == 2 and in_size % LOADED == 0
    _matvec_kernel[(triton.cdiv(out_size, rows),)](
        residual, residual if x is None else x, total, norm_weight, weight,
        weight if bias is None else bias, y, eps,
        OUT=out_size, IN=in_size, ROWS=rows, COLUMNS=columns,
        PIECE=min(LOADED // weight.itemsize, columns), HALVES=halves,
        BIAS=bias is not None, NORM=True, ADDS=x is not None,
        ACTIVATION=None if activation is None else ACTIVATIONS[activation],
        **scale_options(scales, residual, in_size), num_warps=warps,
        maxnreg=MAX_REGISTERS if halves else None, **launch_options(residual),
    )  # fmt: skip
    return y


def _tile(weight: Tensor, *, gated: bool) -> tuple[int, int, int]:
    """Return a program's rows, columns per iteration and warps: the fastest on an H200."""
    in_size = weight.shape[1]
    columns = min(triton.next_power_of_2(in_size), 2048)
    if weight.itemsize == 1:
        return FP8_ROWS // 2 if gated else FP8_ROWS, columns, 4
    if 2048 < in_size < 3072:  # two times 2048 columns would be a third too many
        return 4, 1024, 4
    if in_size >= 4096:
        return 2, columns, 4
    if columns == 2048:
        return 4, columns, 8
    if len(weight) >= MANY_ROWS:
        return 4, columns, 4
    return 8 if len(weight) > FEW_ROWS and not gated else 4, columns, 2


@triton.jit
def _matvec_kernel(
    residual,
    x,
    new_residual,
    norm_weight,
    weight,
    bias,
    y,
    eps,
    scales,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PIECE: tl.constexpr,
    HALVES: tl.constexpr,
    BIAS: tl.constexpr,
    NORM: tl.constexpr,
    ADDS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALES: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    SCALE_COLUMNS: tl.constexpr,
    EARLY: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = row < OUT
    GATES: tl.constexpr = ACTIVATION is not None
    # Weights never change: load the first ones before the previous kernel has ended.
    first = _load_weights(weight, row, 0, OUT, IN, ROWS, COLUMNS, HALVES)
    first_up = first
    if GATES:
        first_up = _load_weights(weight + OUT * IN, row, 0, OUT, IN, ROWS, COLUMNS, HALVES)
    AHEAD: tl.constexpr = NORM and COLUMNS >= IN  # if there are more, it was no faster
    norm = _load_norm(norm_weight, 0, IN, COLUMNS) if AHEAD else 1.0
    wait_for_previous(EARLY)
    squares = tl.zeros([COLUMNS], tl.float32)
    products = tl.zeros([ROWS, COLUMNS // PIECE], tl.float32)
    up_products = tl.zeros([ROWS, COLUMNS // PIECE], tl.float32)
    first_row = tl.program_id(0) * ROWS
    for start in tl.static_range(0, IN, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        part = tl.load(residual + column, mask=column < IN, other=0.0)
        if ADDS:
            part += tl.load(x + column, mask=column < IN, other=0.0)
            written = tl.where(tl.program_id(0) == 0, IN, 0)  # only by the first program
            tl.store(new_residual + column, part, mask=column < written)
        wide = part.to(tl.float32)
        if NORM:
            squares += wide * wide
            wide *= norm if AHEAD else _load_norm(norm_weight, start, IN, COLUMNS)
        rows = (
            first
            if start == 0
            else _load_weights(weight, row, start, OUT, IN, ROWS, COLUMNS, HALVES)
        )
        vector = scaled(wide, scales, first_row, column, IN, SCALES, SCALE_ROWS, SCALE_COLUMNS)
        products += _piecewise(rows, vector, PIECE, HALVES)
        if GATES:
            ups = first_up
            if start > 0:
                ups = _load_weights(weight + OUT * IN, row, start, OUT, IN, ROWS, COLUMNS, HALVES)
            vector = scaled(
                wide, scales, OUT + first_row, column, IN, SCALES, SCALE_ROWS, SCALE_COLUMNS
            )
            up_products += _piecewise(ups, vector, PIECE, HALVES)
    # A norm is one factor for the whole vector, so it can be applied after the product.
    scale = tl.rsqrt(tl.sum(squares) / IN + eps) if NORM else 1.0
    result = tl.sum(products, 1) * scale * row_scale(scales, row, is_row, SCALES)
    if BIAS:
        result += tl.load(bias + row, mask=is_row, other=0.0).to(tl.float32)
    result = result.to(y.dtype.element_ty)
    if GATES:
        up_result = tl.sum(up_products, 1) * scale * row_scale(scales, OUT + row, is_row, SCALES)
        if BIAS:
            up_result += tl.load(bias + OUT + row, mask=is_row, other=0.0).to(tl.float32)
        result = gated(result, up_result.to(y.dtype.element_ty), ACTIVATION)
    tl.store(y + row, result, mask=is_row)


@triton.jit
def _load_norm(norm_weight, start, IN: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the norm's weights of some columns in float32."""
    column = start + tl.arange(0, COLUMNS)
    return tl.load(norm_weight + column, mask=column < IN, other=0.0).to(tl.float32)


@triton.jit
def _load_weights(
    weight,
    row,
    start,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HALVES: tl.constexpr,
):
    """Return some rows' weights, ``[ROWS, COLUMNS]``; for ``HALVES`` 4 of them in an int32."""
    PER: tl.constexpr = 4 if HALVES else 1
    if HALVES:
        weight = weight.to(tl.pointer_type(tl.int32))
    column = start // PER + tl.arange(0, COLUMNS // PER)
    offsets = row.to(tl.int64)[:, None] * (IN // PER) + column[None, :]
    if OUT % ROWS == 0 and IN % COLUMNS == 0:  # a mask would cost time
        return tl.load(weight + offsets)
    exists = (row < OUT)[:, None] & (column < IN // PER)[None, :]
    return tl.load(weight + offsets, mask=exists, other=0 if HALVES else 0.0)


@triton.jit
def _piecewise(weights, vector, PIECE: tl.constexpr, HALVES: tl.constexpr):
    """Return the products of some rows with a vector, ``[COLUMNS]``, summed over pieces.

    A piece is what a thread loads at once, 16 bytes, so that it needs one register for each.
    """
    ROWS: tl.constexpr = weights.shape[0]
    PIECES: tl.constexpr = vector.shape[0] // PIECE
    if HALVES:
        pieces = tl.reshape(vector, [PIECES, PIECE])
        factors, inverse = powers_of_2(tl.max(tl.abs(pieces), 1))
        pairs = tl.reshape(pieces * inverse[:, None], [PIECES, PIECE // 2, 2])
        words = tl.reshape(weights, [ROWS, PIECES, 2, 2])
        return _sum_of_products(words, pairs) * factors[None, :]
    else:  # noqa: RET505 - the compiler wants it so
        return tl.sum(tl.reshape(weights.to(tl.float32) * vector, [ROWS, PIECES, PIECE]), 2)


@triton.jit
def _sum_of_products(words, pairs):
    """Return the products of pieces, ``[ROWS, PIECES, 2, 2]`` words, and ``[PIECES, 8, 2]``."""
    PIECES: tl.constexpr = pairs.shape[0]
    first, second = tl.split(pairs)
    vector = tl.inline_asm_elementwise(
        _TO_PAIR, "=r,f,f", [first, second], dtype=tl.int32, is_pure=True, pack=1
    )
    even, odd = tl.split(tl.reshape(vector, [1, PIECES, 2, 2, 2]))
    w0, w1, w2, w3 = four_of(words)
    v0, v2, v4, v6 = four_of(even)
    v1, v3, v5, v7 = four_of(odd)
    return tl.inline_asm_elementwise(
        _MULTIPLY,
        _OPERANDS,
        [w0, w1, w2, w3, v0, v1, v2, v3, v4, v5, v6, v7],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def scaled(  # noqa: ANN201 - Triton's language
    vector,
    scales,
    row,
    column,
    IN: tl.constexpr,
    SCALES: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    SCALE_COLUMNS: tl.constexpr,
):
    """Return some columns of the vector times the scales of their blocks."""
    if SCALES == "blocks":
        BLOCKS: tl.constexpr = (IN + SCALE_COLUMNS - 1) // SCALE_COLUMNS
        block = row // SCALE_ROWS * BLOCKS + column // SCALE_COLUMNS
        vector = vector * tl.load(scales + block, mask=column < IN, other=0.0)
    return vector


@triton.jit
def row_scale(scales, row, is_row, SCALES: tl.constexpr):  # noqa: ANN201 - Triton's language
    """Return the scales of some rows, or 1 if scales don't belong to rows."""
    return tl.load(scales + row, mask=is_row, other=0.0) if SCALES == "rows" else 1.0
