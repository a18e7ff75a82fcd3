"""Products with some tokens and few columns: sums are cut, so that there is work for everybody.

A library cuts a product into tiles of the output. ``o`` and ``down`` lead back to the hidden size:
64 tokens of 1,024 numbers are 16 tiles of 64 x 64, for 132 processors. So the sum over the inner
dimension is cut, too ("split-K"), and each program leaves a part of it, in float32::

    x [T, in]   ░░░░▒▒▒▒▓▓▓▓████     parts of the sum
                 │   │   │   │
    weight      ░░░░▒▒▒▒▓▓▓▓████
    [out, in]    ▼   ▼   ▼   ▼
    y         [parts, T, out]         added up by the kernel behind it: see ``norm``

Libraries do the same, and launch a kernel to add the parts. Here that is done in passing by the
norm of the residual stream, which reads the product anyway.

Bytes: the weights, once, if no more tokens than a tile has rows; and the parts, ``4 * parts * T *
out``, written and read again, in the L2 cache. Source of the tiling: Tillet et
al., *Triton*, MAPL 2019; of split-K: Osama et al., *Stream-K*, 2023, https://arxiv.org/abs/2301.03598.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.device.launch import launch_options, wait_for_previous

MOST_COLUMNS = 2048
"""With more the library's kernels are better than ours."""
TILE = 64
"""Columns of the output, and, where there are so many, tokens."""
DEPTH = 128
"""How much of the sum a program takes in at once."""
MOST_PARTS = 8
PROCESSORS = 132
"""Of an H200. If the library's tiles keep half of them busy it is as fast; and ours have to."""


def is_for_split(x: Tensor, weight: Tensor) -> bool:
    """Whether ``split_linear`` is made for this product."""
    columns, depth = weight.shape
    fits = columns % TILE == 0 and depth % DEPTH == 0 and columns <= MOST_COLUMNS
    num_tiles = _num_tiles(len(x), columns)
    num_programs = num_tiles * _num_parts(num_tiles, depth)
    return fits and 2 * num_tiles <= PROCESSORS <= 2 * num_programs


def split_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Parts whose sum is ``x @ weight.T + bias``.

    Args:
        x: ``[T, in]``, contiguous; see ``is_for_split``.
        weight: ``[out, in]``, contiguous.
        bias: ``[out]`` or None.

    Returns:
        ``[parts, T, out]`` float32.
    """
    tokens, (columns, depth) = len(x), weight.shape
    rows = 16 if tokens <= 16 else TILE
    num_parts = _num_parts(_num_tiles(tokens, columns), depth)
    parts = torch.empty((num_parts, tokens, columns), device=x.device)
    is_wide = x.dtype == torch.float32
    _split_kernel[(columns // TILE, triton.cdiv(tokens, rows), num_parts)](
        x,
        weight,
        weight if bias is None else bias,
        parts,
        tokens,
        OUT=columns,
        IN=depth,
        ROWS=rows,
        COLUMNS=TILE,
        DEPTH=DEPTH,
        PARTS=num_parts,
        BIAS=bias is not None,
        PRECISION="ieee" if is_wide else "tf32",
        num_warps=4,
        num_stages=2 if is_wide else 4,
        **launch_options(x),
    )
    return parts


def _num_tiles(tokens: int, columns: int) -> int:
    return columns // TILE * -(-tokens // TILE)


def _num_parts(num_tiles: int, depth: int) -> int:
    """A power of two that divides the sum evenly, with a program for each processor at most."""
    parts = MOST_PARTS
    while parts > 1 and (parts * num_tiles > PROCESSORS or depth % (parts * DEPTH)):
        parts //= 2
    return parts


@triton.jit(do_not_specialize=["tokens"])
def _split_kernel(
    x,
    weight,
    bias,
    parts,
    tokens,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    part = tl.program_id(2)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inner = part * (IN // PARTS) + tl.arange(0, DEPTH)
    is_row = (row < tokens)[:, None]
    x_place = x + row[:, None] * IN + inner[None, :]
    weight_place = weight + column[None, :] * IN + inner[:, None]  # transposed
    wait_for_previous(EARLY)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, IN // PARTS, DEPTH):
        xs = tl.load(x_place + start, mask=is_row, other=0.0)
        weights = tl.load(weight_place + start)
        total = tl.dot(xs, weights, total, input_precision=PRECISION)
    if BIAS and part == 0:
        total += tl.load(bias + column).to(tl.float32)[None, :]
    place = (part * tokens + row)[:, None] * OUT + column[None, :]
    tl.store(parts + place, total, mask=is_row)
