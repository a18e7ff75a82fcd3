"""Products with weights in 4-bit integers, which become numbers in registers.

With a single token, a product takes as long as reading the weights, here a quarter of 16-bit ones.
So a GPU has a quarter of the time for each: about three instructions. Making a float of an integer
takes most of them. But the bits of an integer *are* a float, a subnormal one, wherever they lie in
its 23 bits of mantissa::

    word              7777 6666 5555 4444 3333 2222 1111 0000    eight numbers
    word & 15 << 8    0000 0000 0000 0000 0000 2222 0000 0000    as a float, 2222 · 2**(8 - 149)

GPUs multiply subnormal numbers as fast as others and as exactly. The powers of 2 are made up for by
the inputs, once for all rows, and by the result. Numbers 5 to 7 are shifted to the right first.

A program multiplies some rows, in runs of 32 columns (see ``quantization/int4`` for the layout)::

    packed [out, in / 8]   tile [ROWS, RUNS, 4]     a thread has the 4 words of a run, of each row
    scale  [out, groups]        [ROWS, RUNS]        applied to the sum over a run
    x      [in]                 [RUNS, 4]           the inputs of the numbers at the same bits

The zero point is subtracted from the sum: ``scale * (sum of number * x - zero * sum of x)``.

For more tokens, see ``int4_product``.

Source of making numbers from bits in place: Kim et al. 2022, *Who Says Elephants Can't Run*,
https://arxiv.org/abs/2211.10017, which adds an exponent where this uses subnormal numbers.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.device.properties import num_sms
from minimal_vllm.model.kernels.activation import ACTIVATIONS, gated
from minimal_vllm.model.quantization.int4 import (
    BITS,
    PER_WORD,
    RUN,
    SYMMETRIC_ZERO,
    WORDS,
    Int4Weight,
)

ROWS = 8
"""Rows that a program of the product with a single token multiplies at a time; half as many of each
half if it is gated."""
RUNS = 128
"""Runs of each row that such a program loads at a time."""
PROGRAMS_PER_SM = 4
"""Such programs that an SM runs at once."""
_BITS, _PER_WORD = tl.constexpr(BITS), tl.constexpr(PER_WORD)
_RUN, _WORDS = tl.constexpr(RUN), tl.constexpr(WORDS)
_ZERO = tl.constexpr(SYMMETRIC_ZERO)
_MASK = tl.constexpr(15)
_TWO = tl.constexpr(2.0)
_IN_MANTISSA = tl.constexpr(5)
"""Numbers of a word that lie in a float's mantissa."""
_SUBNORMAL = tl.constexpr(149)
"""The smallest subnormal number is 2 to the power of minus this."""
_RAISED = tl.constexpr(100)
"""Power of 2 by which inputs are multiplied, so that products are normal numbers again."""


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
    out_size = weight.out_size if activation is None else weight.out_size // 2
    y = residual.new_empty(1, out_size)
    runs = weight.in_size // RUN
    rows, tiles, warps = _tiles(out_size, runs, num_sms(residual.device), activation is not None)
    _int4_matvec_kernel[(triton.cdiv(out_size, rows * tiles),)](
        residual, residual if x is None else x, residual if total is None else total,
        norm[0] if norm else residual, y if bias is None else bias, y, norm[1] if norm else 0.0,
        **tensors_of(weight), OUT=out_size, IN=weight.in_size, ROWS=rows, TILES=tiles,
        RUNS=min(RUNS, triton.next_power_of_2(runs)),
        BIAS=bias is not None, NORM=norm is not None, ADDS=x is not None,
        ACTIVATION=None if activation is None else ACTIVATIONS[activation],
        num_warps=warps, **launch_options(residual),
    )  # fmt: skip
    return y


def _tiles(out_size: int, runs: int, sms: int, gated: bool) -> tuple[int, int, int]:
    """Return a program's rows at a time, how many times, and its warps: the fastest on an H200.

    If a program's tile has whole rows, it computes several one after the other, so that the inputs,
    which it then has in registers, are prepared once for all of them.
    """
    if runs > RUNS:
        return ROWS, 1, 8
    rows = ROWS // 2 if gated else ROWS
    return rows, triton.cdiv(triton.cdiv(out_size, rows), PROGRAMS_PER_SM * sms), 4


def tensors_of(weight: Int4Weight, *, ordered: bool = True) -> dict[str, Any]:
    """Return the arguments of a kernel that reads a weight, its columns' order included or not."""
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


class _Tile(NamedTuple):
    """Some rows' runs, in registers."""

    words: tl.tensor
    """``[ROWS, RUNS, 4]`` int32."""
    scales: tl.tensor
    """``[ROWS, RUNS]`` float32."""
    zeros: tl.tensor
    """``[ROWS, RUNS]`` float32."""


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
    TILES: tl.constexpr,
    RUNS: tl.constexpr,
    GROUP: tl.constexpr,
    ZEROS: tl.constexpr,
    ORDERED: tl.constexpr,
    BIAS: tl.constexpr,
    NORM: tl.constexpr,
    ADDS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    EARLY: tl.constexpr,
):
    GATES: tl.constexpr = ACTIVATION is not None
    row = tl.program_id(0) * (ROWS * TILES) + tl.arange(0, ROWS)
    # Weights never change: load the first ones before the previous kernel has ended.
    first = _load(packed, scale, zero, row, row < OUT, 0, IN, RUNS, GROUP, ZEROS)
    first_up = first
    if GATES:
        first_up = _load(packed, scale, zero, OUT + row, row < OUT, 0, IN, RUNS, GROUP, ZEROS)
    wait_for_previous(EARLY)
    inputs, squares = _input(
        residual, x, new_residual, norm_weight, order, 0, IN, RUNS, NORM, ADDS, ORDERED
    )
    # A norm is one factor for the whole vector, so it can be applied after the product.
    factor = tl.rsqrt(tl.sum(squares) / IN + eps) if NORM else 1.0
    for tile in range(TILES):
        is_row = row < OUT
        is_next = (row + ROWS < OUT) & (tile + 1 < TILES)
        after = _load(packed, scale, zero, row + ROWS, is_next, 0, IN, RUNS, GROUP, ZEROS)
        after_up = after
        if GATES:
            after_up = _load(
                packed, scale, zero, OUT + row + ROWS, is_next, 0, IN, RUNS, GROUP, ZEROS
            )
        products = _product(first, inputs)
        up_products = _product(first_up, inputs) if GATES else products
        # The rest of long rows, of which there is one tile.
        for start in tl.static_range(RUNS, IN // _RUN, RUNS):
            weights = _load(packed, scale, zero, row, is_row, start, IN, RUNS, GROUP, ZEROS)
            some, square = _input(
                residual, x, new_residual, norm_weight, order, start, IN, RUNS, NORM, ADDS, ORDERED
            )
            squares += square
            products += _product(weights, some)
            if GATES:
                weights = _load(
                    packed, scale, zero, OUT + row, is_row, start, IN, RUNS, GROUP, ZEROS
                )
                up_products += _product(weights, some)
        if NORM and IN > RUNS * _RUN:
            factor = tl.rsqrt(tl.sum(squares) / IN + eps)
        result = tl.sum(products, 1) * factor
        if BIAS:
            result += tl.load(bias + row, mask=is_row, other=0.0).to(tl.float32)
        result = result.to(y.dtype.element_ty)
        if GATES:
            up_result = tl.sum(up_products, 1) * factor
            if BIAS:
                up_result += tl.load(bias + OUT + row, mask=is_row, other=0.0).to(tl.float32)
            result = gated(result, up_result.to(y.dtype.element_ty), ACTIVATION)
        tl.store(y + row, result, mask=is_row)
        row += ROWS
        first, first_up = after, after_up


@triton.jit
def _load(
    packed,
    scale,
    zero,
    row,
    is_row,
    start,
    IN: tl.constexpr,
    RUNS: tl.constexpr,
    GROUP: tl.constexpr,
    ZEROS: tl.constexpr,
):
    """Return the runs from ``start`` on of some rows, a ``_Tile``."""
    ROWS: tl.constexpr = row.shape[0]
    # Loaded as a matrix, and not in this shape, so that a thread's four words are neighbors.
    word = start * _WORDS + tl.arange(0, RUNS * _WORDS)
    at = packed + row.to(tl.int64)[:, None] * (IN // _PER_WORD) + word[None, :]
    words = tl.load(at, mask=is_row[:, None] & (word < IN // _PER_WORD)[None, :], other=0)
    run = start + tl.arange(0, RUNS)
    of_group = row[:, None] * (IN // GROUP) + (run * _RUN // GROUP)[None, :]
    exists = is_row[:, None] & (run < IN // _RUN)[None, :]
    scales = tl.load(scale + of_group, mask=exists, other=0.0).to(tl.float32)
    zeros = tl.full([ROWS, RUNS], _ZERO, tl.float32)
    if ZEROS:
        zeros = tl.load(zero + of_group, mask=exists, other=0).to(tl.float32)
    return _Tile(tl.reshape(words, [ROWS, RUNS, _WORDS]), scales, zeros)


@triton.jit
def _input(
    residual,
    x,
    new_residual,
    norm_weight,
    order,
    start,
    IN: tl.constexpr,
    RUNS: tl.constexpr,
    NORM: tl.constexpr,
    ADDS: tl.constexpr,
    ORDERED: tl.constexpr,
):
    """Return the inputs of the runs from ``start`` on, times the norm's weight; and their squares.

    Inputs are ``[RUNS, 8, 4]``: a run's, by their numbers' place in a word, and the word.
    """
    column = start * _RUN + tl.arange(0, RUNS * _RUN)
    exists = column < IN
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
    return tl.reshape(wide, [RUNS, _PER_WORD, _WORDS]), squares


@triton.jit
def _product(tile, inputs):
    """Return the product of each run of a ``_Tile`` with its inputs, ``[ROWS, RUNS]``."""
    ROWS: tl.constexpr = tile.words.shape[0]
    RUNS: tl.constexpr = tile.words.shape[1]
    place = tl.arange(0, _PER_WORD)
    bit = place % _IN_MANTISSA * _BITS
    words = tl.reshape(tile.words, [ROWS, RUNS, 1, _WORDS])
    high = (place >= _IN_MANTISSA)[None, None, :, None]
    words = tl.where(high, words >> _IN_MANTISSA * _BITS, words)
    numbers = (words & (15 << bit)[None, None, :, None]).to(tl.float32, bitcast=True)
    raised = inputs * _power_of_2(-bit + _RAISED)[None, :, None]
    sums = tl.sum(tl.reshape(numbers * raised[None], [ROWS, RUNS, _RUN]), 2)
    all_inputs = tl.sum(tl.reshape(inputs, [RUNS, _RUN]), 1)
    exact = sums * _TWO ** (_SUBNORMAL - _RAISED) - tile.zeros * all_inputs[None, :]
    return tile.scales * exact


@triton.jit
def _power_of_2(exponent):
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)
