"""Products of a few tokens with weights, which take as long as reading the weights.

A request with guesses computes two to six tokens at a time, and so does a small batch. Such a
product has few FLOPs per byte of weights, as with a single token (see ``matvec``), but too many for
the plain units of an SM. Tensor cores have more than enough. Here the weights are the tall side of
a tile, so that nearly no product is wasted::

    weights [out, in]  ┌──────┐                ┌─┐         ┌─┐
                       │ 32   │  ×  tokens.T   │8│   =     │ │ 32 of y.T
                       └──────┘                └─┘         └─┘

A program reads its rows of the weights from end to end. It has one warp for each 16 rows, which is
what an instruction of the tensor cores multiplies: with more, several would read the same. Where
the output has few columns, the sum is split, so that every SM has work: see ``split``.

Bytes: the weights, once. Source of the bound, the roofline model: Williams et al., CACM 2009.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.model.kernels.activation import ACTIVATIONS, gated

MAX_TOKENS = 8
"""Maximum number of tokens: the narrowest tile. With more, the library is as fast."""
MIN_NUMBERS = 2**23
"""Minimum number of weights. Fewer are read in a few microseconds, and the library is as fast."""
DEPTH = 256
"""Maximum number of columns of the weights that a program multiplies per iteration."""
FEW_COLUMNS = 4096
"""Number of columns of the output up to which the inner sum is split, if it may be."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Work of a program."""

    rows: int
    """Rows of the weights; as many of each half if there is a gate."""
    stages: int
    """Number of iterations whose weights are on their way at a time."""
    parts: int = 1
    """Number of parts of the inner sum, each of a program of its own."""
    starts_early: bool = False
    """Whether the first weights are loaded before the previous kernel has ended."""
    depth: int = DEPTH
    """Columns of the weights per iteration."""


def can_use_few_rows(x: Tensor, weight: Tensor) -> bool:
    """Return whether ``few_rows_product`` can compute this product, and is the fastest way."""
    fits = weight.shape[1] % (2 * DEPTH) == 0 and x.itemsize == 2
    return fits and 1 < len(x) <= MAX_TOKENS and weight.numel() >= MIN_NUMBERS


def choose_tile(weight: Tensor, *, gated: bool = False, may_split: bool = False) -> Tile:
    """Return the tile that was the fastest on an H200.

    An early start keeps a tile of weights in registers. With a gate it has those of two products:
    for a layer of 8B, it lost 3 µs with 256 columns, and gained 0.5 with 128.

    Args:
        weight: ``[out, in]``.
        gated: whether one half of the product is the gate of the other.
        may_split: whether the result may come in parts.
    """
    columns = len(weight)
    if gated:
        return Tile(rows=32, stages=4, starts_early=True, depth=128)
    if columns > 8 * FEW_COLUMNS:
        return Tile(rows=32, stages=3)
    if may_split and columns <= FEW_COLUMNS:
        return Tile(rows=32, stages=4, parts=2, starts_early=True)
    return Tile(rows=16, stages=12, depth=128)


def few_rows_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tile: Tile,
    out: Tensor | None = None,
    *,
    activation: str | None = None,
) -> Tensor:
    """Return ``x @ weight.T + bias``, gated if there is an activation.

    Args:
        x: ``[T, in]``, contiguous; see ``can_use_few_rows``.
        weight: ``[out, in]``, contiguous.
        bias: ``[out]`` or None.
        tile: work of a program. Its parts must divide ``in`` into multiples of its depth.
        out: ``[T, out]``, overwritten with the result. Default: newly
            allocated, as always with several parts.
        activation: a key of ``ACTIVATIONS``: the first half of the product is the gate of the
            second. None: no gate. Not together with parts.

    Returns:
        ``[T, out]``, or ``[T, out / 2]`` if gated; with several parts, ``[parts, T, out]`` float32,
        whose sum is the product.
    """
    (out_size, in_size), tokens = weight.shape, len(x)
    if activation is not None:
        out_size //= 2
    if tile.parts > 1:
        y = torch.empty((tile.parts, tokens, out_size), device=x.device)
    else:
        y = x.new_empty(tokens, out_size) if out is None else out
    _few_rows_kernel[(triton.cdiv(out_size, tile.rows), tile.parts)](
        x, weight, weight if bias is None else bias, y, tokens,
        OUT=out_size, IN=in_size, ROWS=tile.rows, DEPTH=tile.depth, PARTS=tile.parts,
        STARTS_EARLY=tile.starts_early, TOKENS=MAX_TOKENS, BIAS=bias is not None,
        ACTIVATION=None if activation is None else ACTIVATIONS[activation],
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        num_warps=tile.rows // 16, num_stages=tile.stages, **launch_options(x),
    )  # fmt: skip
    return y


@triton.jit(do_not_specialize=["tokens"])
def _few_rows_kernel(
    x,
    weight,
    bias,
    y,
    tokens,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
    STARTS_EARLY: tl.constexpr,
    TOKENS: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    GATES: tl.constexpr = ACTIVATION is not None
    part = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.arange(0, TOKENS)
    inner = part * (IN // PARTS) + tl.arange(0, DEPTH)
    # What is beyond the last row is computed like the last, and not stored. Tokens beyond the last
    # are zeros: if they were the last token, all programs would read the same bytes over and over.
    is_token = (token < tokens)[None, :]
    weights_at = weight + tl.minimum(row, OUT - 1).to(tl.int64)[:, None] * IN + inner[None, :]
    inputs_at = x + token[None, :] * IN + inner[:, None]
    BEGIN: tl.constexpr = DEPTH if STARTS_EARLY else 0
    if STARTS_EARLY:  # weights never change
        first = tl.load(weights_at)
        if GATES:
            first_up = tl.load(weights_at + OUT * IN)
    wait_for_previous(EARLY)
    total = tl.zeros([ROWS, TOKENS], tl.float32)
    up_total = tl.zeros([ROWS, TOKENS], tl.float32)
    for start in range(BEGIN, IN // PARTS, DEPTH):
        inputs = tl.load(inputs_at + start, mask=is_token, other=0.0)
        weights = tl.load(weights_at + start)
        total = tl.dot(weights, inputs, total, input_precision=PRECISION)
        if GATES:
            weights = tl.load(weights_at + (OUT * IN + start))
            up_total = tl.dot(weights, inputs, up_total, input_precision=PRECISION)
    if STARTS_EARLY:  # last, so that all other weights are on their way meanwhile
        inputs = tl.load(inputs_at, mask=is_token, other=0.0)
        total = tl.dot(first, inputs, total, input_precision=PRECISION)
        if GATES:
            up_total = tl.dot(first_up, inputs, up_total, input_precision=PRECISION)
    if BIAS and part == 0:
        total += tl.load(bias + row, mask=row < OUT, other=0.0).to(tl.float32)[:, None]
    result = total.to(y.dtype.element_ty)
    if GATES:
        if BIAS:
            up_total += tl.load(bias + OUT + row, mask=row < OUT, other=0.0).to(tl.float32)[:, None]
        result = gated(result, up_total.to(y.dtype.element_ty), ACTIVATION)
    at = (part * tokens + token)[None, :] * OUT + row[:, None]
    tl.store(y + at, result, mask=(row < OUT)[:, None] & is_token)
