"""Products of one token with weights in 4-bit integers, which become numbers in registers.

With a single token, a product takes as long as reading the weights, here a quarter of 16-bit ones.
So a GPU has a quarter of the time for each: about three instructions. Making a float of an integer
takes most of them. But the bits of an integer *are* a float16 number, a subnormal one, wherever
they lie in its 10 bits of mantissa. So one instruction makes two numbers, and one multiplies them::

    word                    7777 6666 5555 4444 3333 2222 1111 0000    eight numbers
    word & 0x000F000F       .... .... .... 4444 .... .... .... 0000    as float16, n * 2**-24
    word & 0x00F000F0       .... .... 5555 .... .... .... 1111 ....    as float16, n * 2**-20

Numbers 2, 3, 6 and 7 are shifted to the right first. GPUs multiply subnormal numbers as fast as
others and as exactly. The powers of 2 are made up for by the inputs, once for all rows, and by the
result; see ``pairs``, also for what happens to the range of the inputs.

A program multiplies some rows, in runs of 32 columns (see ``quantization/int4`` for the layout)::

    packed [out, in / 8]   tile [ROWS, RUNS, 4]     a thread has the 4 words of a run, of each row
    scale  [out, groups]        [ROWS, RUNS]        applied to the sum over a run
    x      [in]                 [RUNS, 4, 4]        the pairs of inputs that belong to such numbers

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
from minimal_vllm.model.kernels.pairs import four_of, pair_of_halves, powers_of_2, sum_of_pairs
from minimal_vllm.model.quantization.int4 import (
    BITS,
    PER_WORD,
    RUN,
    SYMMETRIC_ZERO,
    WORDS,
    Int4Weight,
)

ROWS = 8
"""Rows that a program of the product with a single token multiplies at a time, and as many of the
other half if it is gated. Twice as many if a program's rows are longer than its tile."""
RUNS = 128
"""Runs of each row that such a program loads at a time."""
WARPS = 8
MAX_REGISTERS = 128
"""Maximum number of a thread's registers: 2 programs then fit into an SM."""
_BITS, _PER_WORD = tl.constexpr(BITS), tl.constexpr(PER_WORD)
_RUN, _WORDS = tl.constexpr(RUN), tl.constexpr(WORDS)
_ZERO = tl.constexpr(SYMMETRIC_ZERO)
_MASK = tl.constexpr(15)
_RAISED = tl.constexpr(2.0**13)
"""Factor of inputs that are multiplied with ``n * 2**-24``. Those of ``n * 2**-20`` are a 16th."""
_LOWERED = tl.constexpr(2.0**11)
"""Factor that is then missing in the products."""


def _assembly() -> str:
    """Return the program that multiplies a run of weights with a run of inputs.

    Operand 0 is the sum, 1 to 4 are the words. Operand ``5 + 4 * place + word`` has the inputs of a
    word's numbers ``place`` and ``place + 4``.
    """
    lines = [
        ".reg .b32 word, pair, sum0, sum1;",
        ".reg .b16 low, high;",
        ".reg .f32 one, other;",
    ]
    for word in range(WORDS):
        total = f"sum{word // 2}"
        lines.append(f"mov.b32 word, ${1 + word};")
        for place in range(4):
            if place == 2:
                lines.append("shr.b32 word, word, 8;")
            inputs = f"${5 + 4 * place + word}"
            lines.append(f"and.b32 pair, word, {'0x00F000F0' if place % 2 else '0x000F000F'};")
            if word % 2 == 0 and place == 0:
                lines.append(f"mul.rn.f16x2 {total}, pair, {inputs};")
            else:
                lines.append(f"fma.rn.f16x2 {total}, pair, {inputs}, {total};")
    return "{" + "\n".join([*lines, *sum_of_pairs("$0", ["sum0", "sum1"])]) + "}"


_MULTIPLY = tl.constexpr(_assembly())
_OPERANDS = tl.constexpr(",".join(["=&f"] + ["r"] * 20))


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
        WIDE=residual.itemsize > 2, num_warps=warps,
        maxnreg=MAX_REGISTERS if residual.itemsize == 2 else None, **launch_options(residual),
    )  # fmt: skip
    return y


def _tiles(out_size: int, runs: int, sms: int, gated: bool) -> tuple[int, int, int]:
    """Return a program's rows at a time, how many times, and its warps: the fastest on an H200.

    If a program's tile has whole rows, it computes several one after the other, so that the inputs,
    which it then has in registers, are prepared once for all of them.
    """
    if runs > RUNS:
        return 2 * ROWS, 1, WARPS
    if not gated and out_size <= 2 * sms * 2 * ROWS:
        # Larger programs, which start early, made the attention before them slower.
        return ROWS, 1, WARPS // 2
    programs = (2 if gated else 4) * sms
    return ROWS, triton.cdiv(triton.cdiv(out_size, ROWS), programs), WARPS


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


class _Weight(NamedTuple):
    """Pointers to a matrix; see ``Int4Weight``."""

    packed: tl.tensor
    scale: tl.tensor
    zero: tl.tensor


class _Vector(NamedTuple):
    """Pointers to what the inputs are computed of; see ``int4_matvec``."""

    residual: tl.tensor
    x: tl.tensor
    total: tl.tensor
    """Written if ``x`` is added."""
    norm_weight: tl.tensor
    order: tl.tensor


class _Tile(NamedTuple):
    """Some rows' runs, in registers."""

    words: tl.tensor
    """``[ROWS, RUNS, 2, 2]`` int32."""
    scales: tl.tensor
    """``[ROWS, RUNS]`` float32."""
    zeros: tl.tensor
    """``[ROWS, RUNS]`` float32."""


class _Inputs(NamedTuple):
    """The inputs of some runs, in registers."""

    numbers: tl.tensor
    """``[RUNS, 4, 4]`` int32: pairs of inputs, by their numbers' place in a word, and the word.
    Wide inputs are ``[RUNS, 8, 4]`` float32."""
    sums: tl.tensor
    """``[RUNS]`` float32: the sum over each run."""
    factors: tl.tensor
    """``[RUNS]`` float32: factor of all products and of the sum."""


@triton.jit
def _int4_matvec_kernel(
    residual,
    x,
    total,
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
    WIDE: tl.constexpr,
    EARLY: tl.constexpr,
):
    GATES: tl.constexpr = ACTIVATION is not None
    weight = _Weight(packed, scale, zero)
    vector = _Vector(residual, x, total, norm_weight, order)
    row = tl.program_id(0) * (ROWS * TILES) + tl.arange(0, ROWS)
    # Weights never change: load the first ones before the previous kernel has ended.
    first = _load(weight, row, row < OUT, 0, IN, RUNS, GROUP, ZEROS)
    first_up = first
    if GATES:
        first_up = _load(weight, OUT + row, row < OUT, 0, IN, RUNS, GROUP, ZEROS)
    wait_for_previous(EARLY)
    inputs, squares = _input(vector, 0, IN, RUNS, NORM, ADDS, ORDERED, WIDE)
    # A norm is one factor for the whole vector, so it can be applied after the product.
    factor = tl.rsqrt(tl.sum(squares) / IN + eps) if NORM else 1.0
    for tile in range(TILES):
        is_row = row < OUT
        is_next = (row + ROWS < OUT) & (tile + 1 < TILES)
        after = _load(weight, row + ROWS, is_next, 0, IN, RUNS, GROUP, ZEROS)
        after_up = after
        if GATES:
            after_up = _load(weight, OUT + row + ROWS, is_next, 0, IN, RUNS, GROUP, ZEROS)
        products = _product(first, inputs, WIDE)
        up_products = _product(first_up, inputs, WIDE) if GATES else products
        # The rest of long rows, of which there is one tile.
        for start in tl.static_range(RUNS, IN // _RUN, RUNS):
            some_inputs, square = _input(vector, start, IN, RUNS, NORM, ADDS, ORDERED, WIDE)
            squares += square
            some = _load(weight, row, is_row, start, IN, RUNS, GROUP, ZEROS)
            products += _product(some, some_inputs, WIDE)
            if GATES:
                some = _load(weight, OUT + row, is_row, start, IN, RUNS, GROUP, ZEROS)
                up_products += _product(some, some_inputs, WIDE)
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
    weight,
    row,
    is_row,
    start,
    IN: tl.constexpr,
    RUNS: tl.constexpr,
    GROUP: tl.constexpr,
    ZEROS: tl.constexpr,
):
    """Return the runs from ``start`` on of some rows of a ``_Weight``, a ``_Tile``."""
    ROWS: tl.constexpr = row.shape[0]
    # Loaded as a matrix, and not in this shape, so that a thread's four words are neighbors.
    word = start * _WORDS + tl.arange(0, RUNS * _WORDS)
    at = weight.packed + row.to(tl.int64)[:, None] * (IN // _PER_WORD) + word[None, :]
    words = tl.load(at, mask=is_row[:, None] & (word < IN // _PER_WORD)[None, :], other=0)
    run = start + tl.arange(0, RUNS)
    of_group = row[:, None] * (IN // GROUP) + (run * _RUN // GROUP)[None, :]
    exists = is_row[:, None] & (run < IN // _RUN)[None, :]
    scales = tl.load(weight.scale + of_group, mask=exists, other=0.0).to(tl.float32)
    zeros = tl.full([ROWS, RUNS], _ZERO, tl.float32)
    if ZEROS:
        zeros = tl.load(weight.zero + of_group, mask=exists, other=0).to(tl.float32)
    return _Tile(tl.reshape(words, [ROWS, RUNS, 2, 2]), scales, zeros)


@triton.jit
def _input(
    vector,
    start,
    IN: tl.constexpr,
    RUNS: tl.constexpr,
    NORM: tl.constexpr,
    ADDS: tl.constexpr,
    ORDERED: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Return a ``_Vector``'s ``_Inputs`` of the runs from ``start`` on, and their squares.

    The inputs are times the norm's weight, the squares those of the residual stream.
    """
    column = start * _RUN + tl.arange(0, RUNS * _RUN)
    exists = column < IN
    if ORDERED:
        column = tl.load(vector.order + column, mask=exists, other=0)
    part = tl.load(vector.residual + column, mask=exists, other=0.0)
    if ADDS:
        part += tl.load(vector.x + column, mask=exists, other=0.0)
        written = tl.where(tl.program_id(0) == 0, exists, False)  # only by the first program
        tl.store(vector.total + column, part, mask=written)
    wide = part.to(tl.float32)
    squares = wide * wide
    if NORM:
        wide *= tl.load(vector.norm_weight + column, mask=exists, other=0.0).to(tl.float32)
    wide = tl.reshape(wide, [RUNS, _RUN])
    if WIDE:
        numbers = tl.reshape(wide, [RUNS, _PER_WORD, _WORDS])
        sums, factors = tl.sum(wide, 1), tl.full([RUNS], 1.0, tl.float32)
    else:
        factors, inverse = powers_of_2(tl.max(tl.abs(wide), 1))
        halves = (wide * (inverse * _RAISED)[:, None]).to(tl.float16)
        sums = tl.sum(halves.to(tl.float32), 1) / _RAISED
        is_odd = (tl.arange(0, _RUN) // _WORDS % 2)[None, :] == 1
        halves *= tl.where(is_odd, 1 / 16, 1.0).to(tl.float16)
        # run, number's place / 4, place % 4, word
        halves = tl.reshape(halves, [RUNS, 2, 4, _WORDS])
        first, second = tl.split(tl.permute(halves, (0, 2, 3, 1)))
        numbers = pair_of_halves(first, second)
    return _Inputs(numbers, sums, factors), squares


@triton.jit
def _product(tile, inputs, WIDE: tl.constexpr):
    """Return the product of each run of a ``_Tile`` with its inputs, ``[ROWS, RUNS]``."""
    ROWS: tl.constexpr = tile.words.shape[0]
    RUNS: tl.constexpr = tile.words.shape[1]
    if WIDE:
        words = tl.reshape(tile.words, [ROWS, RUNS, 1, _WORDS])
        shift = (tl.arange(0, _PER_WORD) * _BITS)[None, None, :, None]
        products = ((words >> shift) & _MASK).to(tl.float32) * inputs.numbers[None]
        sums = tl.sum(tl.reshape(products, [ROWS, RUNS, _RUN]), 2)
    else:
        sums = _sum_of_products(tile.words, inputs.numbers) * _LOWERED
    return tile.scales * inputs.factors * (sums - tile.zeros * inputs.sums)


@triton.jit
def _sum_of_products(words, pairs):
    """Return the products of runs, ``[ROWS, RUNS, 2, 2]`` words, with pairs, ``[RUNS, 4, 4]``."""
    RUNS: tl.constexpr = pairs.shape[0]
    w0, w1, w2, w3 = four_of(words)
    of0, of1, of2, of3 = four_of(tl.reshape(pairs, [RUNS, 4, 2, 2]))
    a0, b0, c0, d0 = four_of(tl.reshape(of0, [1, RUNS, 2, 2]))
    a1, b1, c1, d1 = four_of(tl.reshape(of1, [1, RUNS, 2, 2]))
    a2, b2, c2, d2 = four_of(tl.reshape(of2, [1, RUNS, 2, 2]))
    a3, b3, c3, d3 = four_of(tl.reshape(of3, [1, RUNS, 2, 2]))
    return tl.inline_asm_elementwise(
        _MULTIPLY,
        _OPERANDS,
        [w0, w1, w2, w3, a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )
