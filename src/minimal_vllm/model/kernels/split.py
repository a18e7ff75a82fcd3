"""Products with some tokens and few columns, whose inner sum is split so that every SM has work.

A library cuts a product into tiles of the output. The outputs of ``o`` and ``down`` have the hidden
size: 64 tokens of 1,024 numbers are 16 tiles of 64 x 64, for an H200's 132 SMs. So the sum over the
inner dimension is cut, too ("split-K"), and each program stores a part of it, in float32::

    x [T, in]   ░░░░▒▒▒▒▓▓▓▓████     parts of the sum
                 │   │   │   │
    weight      ░░░░▒▒▒▒▓▓▓▓████
    [out, in]    ▼   ▼   ▼   ▼
    y         [parts, T, out]         summed by the next kernel: see ``norm``

Libraries do the same, and launch another kernel to sum the parts. Here the norm of the residual
stream sums them, as it reads the product anyway.

Bytes: the weights, once, if there are no more tokens than a tile has rows; and the parts, ``4 *
parts * T * out``, written and read again in the L2 cache. Sources: Tillet et al., *Triton*, MAPL
2019 (tiling); Osama et al., *Stream-K*, 2023, https://arxiv.org/abs/2301.03598 (split-K).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.device.properties import num_sms

MAX_COLUMNS = 2048
"""Maximum number of columns of the output: with more, the library's kernels are better."""
TILE = 64
"""Tile size in columns of the output, and in tokens if there are more than 16."""
DEPTH = 128
"""Terms of the sum that a program adds per iteration."""
MAX_PARTS = 8


def can_use_split(x: Tensor, weight: Tensor) -> bool:
    """Return whether ``split_linear`` can compute this product, and is faster than the library.

    The library is as fast if its tiles keep half of the SMs busy. Ours must keep half busy as well.
    """
    columns, depth = weight.shape
    sms = num_sms(x.device)
    fits = columns % TILE == 0 and depth % DEPTH == 0 and columns <= MAX_COLUMNS
    num_tiles = _num_tiles(len(x), columns)
    num_programs = num_tiles * _num_parts(num_tiles, depth, sms)
    return fits and 2 * num_tiles <= sms <= 2 * num_programs


def split_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return parts whose sum is ``x @ weight.T + bias``.

    Args:
        x: ``[T, in]``, contiguous; see ``can_use_split``.
        weight: ``[out, in]``, contiguous.
        bias: ``[out]`` or None.

    Returns:
        ``[parts, T, out]`` float32.
    """
    tokens, (columns, depth) = len(x), weight.shape
    rows = 16 if tokens <= 16 else TILE
    num_parts = _num_parts(_num_tiles(tokens, columns), depth, num_sms(x.device))
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


def _num_parts(num_tiles: int, depth: int, sms: int) -> int:
    """Return the number of parts: a power of two that gives at most one program per SM."""
    parts = MAX_PARTS
    while parts > 1 and (parts * num_tiles > sms or depth % (parts * DEPTH)):
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
    x_pointers = x + row[:, None] * IN + inner[None, :]
    weight_pointers = weight + column[None, :] * IN + inner[:, None]  # transposed
    wait_for_previous(EARLY)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, IN // PARTS, DEPTH):
        xs = tl.load(x_pointers + start, mask=is_row, other=0.0)
        weights = tl.load(weight_pointers + start)
        total = tl.dot(xs, weights, total, input_precision=PRECISION)
    if BIAS and part == 0:
        total += tl.load(bias + column).to(tl.float32)[None, :]
    offsets = (part * tokens + row)[:, None] * OUT + column[None, :]
    tl.store(parts + offsets, total, mask=is_row)
