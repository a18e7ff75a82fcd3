"""Products of several tokens with weights in FP8, on tensor cores that multiply FP8.

They multiply twice as many FP8 numbers per second as 16-bit ones, but both operands must be FP8. So
``quantize_inputs`` first rounds the activations, with one scale per token and group of columns, as
the formats prescribe ("dynamic" activations)::

    x [T, in]  ─►  e4m3 [T, in], scales [T, in / group]  ─►  product with the weights

If a group is the whole row, the scales are factors of the result. With blocks, the partial sum of
each 128 columns has its own two scales, and is added up in float32 registers (DeepSeek-V3, 2024,
https://arxiv.org/abs/2412.19437, section 3.3.2). PyTorch has a product of either kind.

With scales per row, the library's tiles all have one size, 128 × 128, and half of the SMs get none
if there are few tokens. Without scales, it chooses among many sizes, and splits the inner sum. So
the product of few tokens is computed without, and a kernel of ours multiplies it by the scales; if
it is gated, in the pass that applies the gate anyway.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.device.properties import is_hopper, is_hopper_or_later
from minimal_vllm.model.kernels.activation import ACTIVATIONS, gated
from minimal_vllm.model.kernels.matvec import Scales

BLOCK = 128
"""Columns of the inputs that share a scale, if the weights have scales per block."""
LARGEST = 448.0
MAX_UNSCALED = 512
"""Maximum number of tokens whose product is scaled by a kernel of its own."""
MIN_ROWS = 17
"""Minimum number of rows of the inputs; those after the tokens are not initialized. The library's
products of fewer rows are slower."""
ALIGNED = 4
"""Scales of a block product's rows are side by side, and each group's begin at a multiple of 16
bytes. So there are a multiple of these."""
BLOCK_OF_SCALES = 1024
"""Columns per program of the kernel that multiplies by scales."""


def quantize_inputs(x: Tensor, group: int, min_rows: int = 0) -> tuple[Tensor, Tensor]:
    """Round each token's numbers to FP8, with one scale per group of columns.

    Args:
        x: ``[T, in]``, contiguous.
        group: number of columns per group; the whole row, or a power of two.
        min_rows: minimum number of rows to return; those after the tokens are not initialized.

    Returns:
        As many rows of e4m3, ``[rows, in]``, and of scales, ``[rows, ceil(in / group)]`` float32.
    """
    tokens, in_size = x.shape
    rows = max(tokens, min_rows)
    out = x.new_empty(rows, in_size, dtype=torch.float8_e4m3fn)
    groups = triton.cdiv(in_size, group)
    scales = torch.empty(rows, groups, device=x.device)
    _quantize_kernel[(tokens,)](
        x, out, scales, IN=in_size, GROUP=group, NUM_GROUPS=groups,
        GROUPS=triton.next_power_of_2(groups), WIDTH=triton.next_power_of_2(group),
        LARGEST=LARGEST, num_warps=8 if in_size > 4096 else 4, **launch_options(x),
    )  # fmt: skip
    return out, scales


def can_use_row_product(weight: Tensor) -> bool:
    """Return whether ``fp8_row_product`` can compute a product: on Hopper, in multiples of 16."""
    return all(size % 16 == 0 for size in weight.shape) and is_hopper_or_later(weight.device)


def fp8_row_product(
    x: Tensor, weight: Tensor, scales: Scales, bias: Tensor | None, activation: str | None = None
) -> Tensor:
    """Return ``x @ weight.T + bias``, gated if asked for, for a weight with one scale per row.

    Args:
        x: ``[T, in]``, contiguous.
        weight: ``[out, in]`` e4m3, contiguous; see ``can_use_row_product``.
        scales: the weight's scales.
        bias: ``[out]`` or None.
        activation: a key of ``ACTIVATIONS``: the first half of the product is the gate of the
            second. None: no gate.

    Returns:
        ``[T, out]``, or ``[T, out / 2]`` if gated.
    """
    if activation is not None or len(x) <= MAX_UNSCALED:
        return _scaled_later(x, weight, scales, bias, activation)
    inputs, input_scales = quantize_inputs(x, x.shape[1])
    product = torch._scaled_mm(
        inputs,
        weight.T,
        scale_a=input_scales,
        scale_b=scales.values.T,
        out_dtype=torch.bfloat16,  # the only one with scales per row
    ).to(x.dtype)
    return product if bias is None else product.add_(bias)


def _scaled_later(
    x: Tensor, weight: Tensor, scales: Scales, bias: Tensor | None, activation: str | None
) -> Tensor:
    """Compute what ``fp8_row_product`` does, with the scales in a second kernel."""
    inputs, input_scales = quantize_inputs(x, x.shape[1], MIN_ROWS)
    one = _one(x.device)
    product = torch._scaled_mm(inputs, weight.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    size = len(weight) if activation is None else len(weight) // 2
    out = x.new_empty(len(x), size)
    _scale_kernel[(len(x), triton.cdiv(size, BLOCK_OF_SCALES))](
        product, input_scales, scales.values, product if bias is None else bias, out,
        OUT=len(weight), SIZE=size, BLOCK=BLOCK_OF_SCALES, BIAS=bias is not None,
        ACTIVATION=None if activation is None else ACTIVATIONS[activation],
        num_warps=4, **launch_options(x),
    )  # fmt: skip
    return out


@lru_cache
def _one(device: torch.device) -> Tensor:
    """Return the scale of numbers that have none."""
    return torch.ones((), device=device)


def can_use_block_product(weight: Tensor, scales: Scales) -> bool:
    """Return whether ``fp8_block_product`` can compute a product.

    It needs whole blocks of 128 × 128, whose scales begin at multiples of 16 bytes, and Hopper.
    """
    out_size, in_size = weight.shape
    is_whole = out_size % BLOCK == 0 and in_size % (ALIGNED * BLOCK) == 0
    return is_whole and (scales.rows, scales.columns) == (BLOCK, BLOCK) and is_hopper(weight.device)


def fp8_block_product(x: Tensor, weight: Tensor, scales: Scales, bias: Tensor | None) -> Tensor:
    """Return ``x @ weight.T + bias`` for a weight with one scale per block.

    Args:
        x: ``[T, in]``, contiguous.
        weight: ``[out, in]`` e4m3, contiguous; see ``can_use_block_product``.
        scales: the weight's scales.
        bias: ``[out]`` or None.

    Returns:
        ``[T, out]``
    """
    rows = triton.cdiv(len(x), ALIGNED) * ALIGNED
    inputs, input_scales = quantize_inputs(x, BLOCK, rows)
    product = torch._scaled_mm(
        inputs,
        weight.T,
        scale_a=input_scales.T.contiguous().T,  # the library wants the tokens' scales side by side
        scale_b=scales.values.T,
        out_dtype=torch.bfloat16,
    )[: len(x)].to(x.dtype)
    return product if bias is None else product.add_(bias)


@triton.jit
def _quantize_kernel(
    x,
    out,
    scales,
    IN: tl.constexpr,
    GROUP: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    LARGEST: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_previous(EARLY)
    token = tl.program_id(0).to(tl.int64)
    group, place = tl.arange(0, GROUPS), tl.arange(0, WIDTH)
    column = group[:, None] * GROUP + place[None, :]
    exists = (column < IN) & (place < GROUP)[None, :]
    numbers = tl.load(x + token * IN + column, mask=exists, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(numbers), 1), 1e-12) / LARGEST
    tl.store(scales + token * NUM_GROUPS + group, scale, mask=group < NUM_GROUPS)
    scaled = tl.clamp(numbers / scale[:, None], -LARGEST, LARGEST)
    tl.store(out + token * IN + column, scaled.to(out.dtype.element_ty), mask=exists)


@triton.jit
def _scale_kernel(
    product,
    input_scales,
    scales,
    bias,
    out,
    OUT: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    EARLY: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = column < SIZE
    dtype = out.dtype.element_ty
    wait_for_previous(EARLY)
    scale = tl.load(input_scales + token)
    numbers = product + token * OUT
    result = _scaled(numbers, scale, scales, bias, column, exists, BIAS).to(dtype)
    if ACTIVATION is not None:
        up = _scaled(numbers, scale, scales, bias, SIZE + column, exists, BIAS).to(dtype)
        result = gated(result, up, ACTIVATION)
    tl.store(out + token * SIZE + column, result, mask=exists)


@triton.jit
def _scaled(numbers, scale, scales, bias, column, exists, BIAS: tl.constexpr):
    """Return some columns of a token's product, times the scales, plus the bias."""
    some = tl.load(numbers + column, mask=exists, other=0.0).to(tl.float32)
    some *= scale * tl.load(scales + column, mask=exists, other=0.0)
    if BIAS:
        some += tl.load(bias + column, mask=exists, other=0.0).to(tl.float32)
    return some
