"""Products of weights with one token, where only the reading of the weights counts.

With one token a product has 1 FLOP per byte of weights; the fastest possible one reads each weight
once, at the memory's rate. Libraries reach half to three quarters of it, since their kernels are
cut for large tiles. Here a program reads some rows of the weights in long, contiguous pieces, with
no tensor cores, and multiplies them with the token's vector in registers::

    weights [out, in]   row 0 ────────────►   ×  x  = y[0]
                        row 1 ────────────►         = y[1]

What comes before the product is computed by every program anew: the vector is short and in the
L2 cache, and a launch costs more. There are two such beginnings: the norm of the residual stream,
and SwiGLU's gate, whose product with the rows for ``gate`` and ``up`` is taken together.

With two tokens and more a library's kernel wins, on tensor cores: here each weight would be turned
into float32 once per token.

Source of the reckoning, the roofline: Williams et al., CACM 2009.
"""

import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.model.kernels.gate import gated


def is_for_matvec(x: Tensor) -> bool:
    """Whether there is only one token."""
    return len(x) == 1


def matvec(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``.

    Args:
        x: ``[1, in]``, contiguous.
        weight: ``[out, in]``, contiguous.
        bias: ``[out]`` or None.
        out: where to put the result; None: into new memory.
    """
    out_size, in_size = weight.shape
    y = x.new_empty(1, out_size) if out is None else out
    rows, columns, warps = _tile(in_size)
    _matvec_kernel[(triton.cdiv(out_size, rows),)](
        x, x, x, x, weight, weight if bias is None else bias, y, 0.0,
        OUT=out_size, IN=in_size, ROWS=rows, COLUMNS=columns,
        BIAS=bias is not None, NORM=False, ADDS=False, GATES=False, num_warps=warps,
        **launch_options(x),
    )  # fmt: skip
    return y


def add_norm_matvec(
    residual: Tensor,
    x: Tensor | None,
    total: Tensor,
    norm_weight: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    *,
    gates: bool = False,
) -> Tensor:
    """Compute ``total = residual + x``, and the product of ``weight`` with its norm.

    Args:
        residual: ``[1, in]``, contiguous; unchanged, since other programs still read it.
        x: ``[1, in]``, contiguous, or None.
        total: ``[1, in]``, contiguous; written, unless ``x`` is None: then it is ``residual``.
        norm_weight: ``[in]``.
        eps: of the norm.
        weight: ``[out, in]``.
        bias: ``[out]`` or None.
        gates: the first half of the product is SwiGLU's gate, for the second.

    Returns:
        ``[1, out]``, or ``[1, out / 2]`` if it gates.
    """
    out_size, in_size = weight.shape[0] // (2 if gates else 1), weight.shape[1]
    y = residual.new_empty(1, out_size)
    rows, columns, warps = _tile(in_size)
    _matvec_kernel[(triton.cdiv(out_size, rows),)](
        residual, residual if x is None else x, total, norm_weight, weight,
        weight if bias is None else bias, y, eps,
        OUT=out_size, IN=in_size, ROWS=rows, COLUMNS=columns,
        BIAS=bias is not None, NORM=True, ADDS=x is not None, GATES=gates, num_warps=warps,
        **launch_options(residual),
    )  # fmt: skip
    return y


def _tile(in_size: int) -> tuple[int, int, int]:
    """Rows and columns that a program reads at once, and its warps: what was fastest on an H200."""
    columns = min(triton.next_power_of_2(in_size), 2048)
    if in_size >= 4096:
        return 2, columns, 4
    return 4, columns, 8 if columns == 2048 else 4


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
    OUT: tl.constexpr,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BIAS: tl.constexpr,
    NORM: tl.constexpr,
    ADDS: tl.constexpr,
    GATES: tl.constexpr,
    EARLY: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = row < OUT
    # Weights never change: the first are on their way before the kernel before this one ends.
    first = _load_weights(weight, row, 0, OUT, IN, COLUMNS)
    first_up = _load_weights(weight + OUT * IN, row, 0, OUT, IN, COLUMNS) if GATES else first
    wait_for_previous(EARLY)
    squares = tl.zeros([COLUMNS], tl.float32)
    products = tl.zeros([ROWS, COLUMNS], tl.float32)
    up_products = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in tl.static_range(0, IN, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        part = tl.load(residual + column, mask=column < IN, other=0.0)
        if ADDS:
            part += tl.load(x + column, mask=column < IN, other=0.0)
            written = tl.where(tl.program_id(0) == 0, IN, 0)  # by the first program alone
            tl.store(new_residual + column, part, mask=column < written)
        wide = part.to(tl.float32)
        if NORM:
            squares += wide * wide
            wide *= tl.load(norm_weight + column, mask=column < IN, other=0.0).to(tl.float32)
        rows = first if start == 0 else _load_weights(weight, row, start, OUT, IN, COLUMNS)
        products += rows.to(tl.float32) * wide[None, :]
        if GATES:
            ups = first_up
            if start > 0:
                ups = _load_weights(weight + OUT * IN, row, start, OUT, IN, COLUMNS)
            up_products += ups.to(tl.float32) * wide[None, :]
    # A norm is one factor for the whole vector: it may as well come after the product.
    scale = tl.rsqrt(tl.sum(squares) / IN + eps) if NORM else 1.0
    result = tl.sum(products, 1) * scale
    if BIAS:
        result += tl.load(bias + row, mask=is_row, other=0.0).to(tl.float32)
    result = result.to(y.dtype.element_ty)
    if GATES:
        up_result = tl.sum(up_products, 1) * scale
        if BIAS:
            up_result += tl.load(bias + OUT + row, mask=is_row, other=0.0).to(tl.float32)
        result = gated(result, up_result.to(y.dtype.element_ty))
    tl.store(y + row, result, mask=is_row)


@triton.jit
def _load_weights(weight, row, start, OUT: tl.constexpr, IN: tl.constexpr, COLUMNS: tl.constexpr):
    column = start + tl.arange(0, COLUMNS)
    place = row.to(tl.int64)[:, None] * IN + column[None, :]
    return tl.load(weight + place, mask=(row < OUT)[:, None] & (column < IN)[None, :], other=0.0)
