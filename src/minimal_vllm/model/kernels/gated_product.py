"""A gated product with many tokens: ``activation(x @ gate) * (x @ up)`` in one kernel.

A kernel for the gate alone would read back what the product has just written, ``[T, 2 * inner]``:
in the 0.6B shape a twentieth of a prompt's time. Here a program computes the same tile of both
products and writes their gated result::

    x [T, in]  ×  gate [inner, in] ──►  ┌────────┐  silu(gate) * up
                  up   [inner, in] ──►  └────────┘  [128, 128] of [T, inner]

Three things make a product fast on Hopper. Tiles come by TMA, a unit that copies what a
*descriptor* of the matrix says, without the threads of an SM. Some warps ask for tiles while others
multiply (*warp specialization*). And one program per SM computes tile after tile, so that the end
of one overlaps with the beginning of the next. Triton does the first two for us.

The kernel is launched without an early start: it is long compared with a launch.

Tiles are computed in groups of ``GROUP`` rows, so that neighboring tiles' data is still in the L2
cache.

FLOPs: ``4 * T * in * inner``, the floor. Source: Shazeer 2020, https://arxiv.org/abs/2002.05202;
the order of tiles: Tillet et al., *Triton*, MAPL 2019.
"""

import triton
import triton.language as tl
from torch import Tensor, float32
from triton.tools.tensor_descriptor import TensorDescriptor

from minimal_vllm.device.properties import is_hopper, num_sms
from minimal_vllm.model.kernels.activation import ACTIVATIONS, gated

MIN_TOKENS = 4096
"""Minimum number of tokens: with fewer there are too few tiles for programs that take several."""
ROWS, COLUMNS, DEPTH = 128, 128, 64
"""Tile size in tokens and in columns of the output; and terms of the sum added per iteration."""
GROUP = 8
"""Rows of tiles per group."""


def can_use_gated_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether ``gated_product`` can compute this product, and is the fastest way to do so.

    The kernel is written for Hopper. Blackwell has other instructions for it and was not tested.
    """
    return (
        len(x) >= MIN_TOKENS
        and bias is None
        and x.itemsize == 2
        and weight.shape[0] % (2 * COLUMNS) == 0
        and weight.shape[1] % DEPTH == 0
        and is_hopper(x.device)
    )


def gated_product(x: Tensor, weight: Tensor, activation: str) -> Tensor:
    """Return ``activation(x @ gate.T) * (x @ up.T)``.

    Args:
        x: ``[T, in]``, contiguous; see ``can_use_gated_product``.
        weight: ``[2 * inner, in]``, contiguous: gate, then up.
        activation: a key of ``ACTIVATIONS``.

    Returns:
        ``[T, inner]``
    """
    tokens, depth = x.shape
    inner = len(weight) // 2
    out = x.new_empty(tokens, inner)
    programs = num_sms(x.device)
    _gated_product_kernel[(programs,)](
        TensorDescriptor.from_tensor(x, [ROWS, DEPTH]),
        TensorDescriptor.from_tensor(weight, [COLUMNS, DEPTH]),
        TensorDescriptor.from_tensor(out, [ROWS, COLUMNS]),
        tokens,
        INNER=inner,
        IN=depth,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        DEPTH=DEPTH,
        GROUP=GROUP,
        PROGRAMS=programs,
        ACTIVATION=ACTIVATIONS[activation],
        PRECISION="ieee" if x.dtype == float32 else "tf32",
        num_warps=8,
        num_stages=3,
    )
    return out


@triton.jit(do_not_specialize=["tokens"])
def _gated_product_kernel(
    x,
    weight,
    out,
    tokens,
    INNER: tl.constexpr,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    PROGRAMS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
):
    rows_of_tiles, columns_of_tiles = tl.cdiv(tokens, ROWS), INNER // COLUMNS
    num_tiles = rows_of_tiles * columns_of_tiles
    for tile in tl.range(tl.program_id(0), num_tiles, PROGRAMS, warp_specialize=True):
        first = tile // (GROUP * columns_of_tiles) * GROUP
        in_group = tile % (GROUP * columns_of_tiles)
        height = tl.minimum(rows_of_tiles - first, GROUP)
        row = (first + in_group % height) * ROWS
        column = in_group // height * COLUMNS
        gate = tl.zeros([ROWS, COLUMNS], tl.float32)
        up = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(0, IN, DEPTH):
            xs = x.load([row, start])
            gates = weight.load([column, start]).T
            gate = tl.dot(xs, gates, gate, input_precision=PRECISION)
            ups = weight.load([INNER + column, start]).T
            up = tl.dot(xs, ups, up, input_precision=PRECISION)
        out.store([row, column], gated(gate.to(out.dtype), up.to(out.dtype), ACTIVATION))
