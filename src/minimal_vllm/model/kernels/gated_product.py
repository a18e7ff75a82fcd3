"""SwiGLU with many tokens: the product with ``gate`` and ``up``, and the gate at its end.

By itself the gate would read what the product has just written, ``[T, 2 * inner]``: in the 0.6B
shape a twentieth of a prompt's time. Here a program computes the same tile of both products, and
writes their gated result::

    x [T, in]  ×  gate [inner, in] ──►  ┌────────┐  silu(gate) * up
                  up   [inner, in] ──►  └────────┘  [128, 128] of [T, inner]

What makes a product fast on Hopper: tiles come by TMA, a unit that copies what a *descriptor* of
the matrix says, without a processor's threads; some warps ask for tiles while others multiply
(*warp specialization*); and one program per processor takes tile after tile, so that the end of one
overlaps with the beginning of the next. Triton does the first two for us.

It is launched as ever, without an early start: what it takes is long beside a launch.

Tiles are taken in groups of ``GROUP`` rows, so that what neighbours read is still in the L2 cache.

FLOPs: ``4 * T * in * inner``, the floor. Source: Shazeer 2020, https://arxiv.org/abs/2002.05202;
of the order of tiles, Tillet et al., *Triton*, MAPL 2019.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from minimal_vllm.model.kernels.gate import gated

HOPPER = 9
"""Compute capability 9.x; Blackwell has other instructions for this, and was not tried."""
LEAST_TOKENS = 4096
"""With fewer there are too few tiles for programs that take several."""
ROWS, COLUMNS, DEPTH = 128, 128, 64
"""Of a tile: tokens, columns of the output, and how much of the sum is taken in at once."""
GROUP = 8


def is_for_gated_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether ``gated_product`` is made for this."""
    return (
        len(x) >= LEAST_TOKENS
        and bias is None
        and x.itemsize == 2
        and weight.shape[0] % (2 * COLUMNS) == 0
        and weight.shape[1] % DEPTH == 0
        and x.is_cuda
        and torch.cuda.get_device_capability(x.device)[0] == HOPPER
    )


def gated_product(x: Tensor, weight: Tensor) -> Tensor:
    """``silu(x @ gate.T) * (x @ up.T)``.

    Args:
        x: ``[T, in]``, contiguous; see ``is_for_gated_product``.
        weight: ``[2 * inner, in]``, contiguous: gate, then up.

    Returns:
        ``[T, inner]``
    """
    tokens, depth = x.shape
    inner = len(weight) // 2
    out = x.new_empty(tokens, inner)
    processors = 4  # of Triton's interpreter, as it were
    if x.is_cuda:
        processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    _gated_product_kernel[(processors,)](
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
        PROGRAMS=processors,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
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
        out.store([row, column], gated(gate.to(out.dtype), up.to(out.dtype)))
