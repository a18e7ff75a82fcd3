"""Adding to the residual stream and normalizing the sum, in one pass over memory.

Source of the norm: Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467.

Plain PyTorch reads and writes the stream several times: to add, to square, to scale. Here one
program holds one token's vector in registers. Bytes per token: read residual and x, write both:
``4 * hidden * itemsize``; the floor is the memory bandwidth. If x comes in parts (see ``split``),
they are summed in the same pass: ``4 * hidden`` bytes each.
"""

import triton
import triton.language as tl
from torch import Tensor, empty_like

from minimal_vllm.device.launch import launch_options, wait_for_previous


def add_norm(
    residual: Tensor,
    x: Tensor | None,
    weight: Tensor,
    eps: float,
    total: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Add ``x`` to ``residual``, and return both the sum and its RMS norm.

    Args:
        residual: ``[T, hidden]``, contiguous.
        x: ``[T, hidden]``, or parts that sum to it, ``[parts, T, hidden]``; contiguous. None:
            nothing is added.
        weight: ``[hidden]``.
        eps: constant added to the mean square.
        total: ``[T, hidden]``, contiguous: memory for the sum. Default: ``residual`` itself.

    Returns:
        The sum and its norm, each ``[T, hidden]``.
    """
    normed = empty_like(residual)
    total = residual if total is None else total
    tokens, size = residual.shape
    num_parts = 0 if x is None else len(x) if x.dim() > residual.dim() else 1
    _add_norm_kernel[(tokens,)](
        residual,
        residual if x is None else x,
        total,
        weight,
        normed,
        eps,
        SIZE=size,
        BLOCK=triton.next_power_of_2(size),
        PARTS=num_parts,
        num_warps=_num_warps(tokens, size, num_parts),
        **launch_options(residual),
    )
    return total, normed


def _num_warps(tokens: int, size: int, num_parts: int) -> int:
    """Return the warps of a program: the fastest on an H200.

    A single program that adds up parts would otherwise mostly wait for its own loads.
    """
    if tokens == 1 and num_parts > 1:
        return 16
    return 4 if size <= 2048 else 8


@triton.jit
def _add_norm_kernel(
    residual,
    x,
    total,
    weight,
    normed,
    eps,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    EARLY: tl.constexpr,
):
    column = tl.arange(0, BLOCK)
    exists = column < SIZE
    scale = tl.load(weight + column, mask=exists, other=0.0)
    wait_for_previous(EARLY)
    offsets = tl.program_id(0).to(tl.int64) * SIZE + column
    value = tl.load(residual + offsets, mask=exists, other=0.0)
    if PARTS:
        added = tl.zeros([BLOCK], tl.float32)
        for part in tl.static_range(PARTS):
            part_start = part * tl.num_programs(0) * SIZE
            added += tl.load(x + part_start + offsets, mask=exists, other=0.0).to(tl.float32)
        value += added.to(value.dtype)
        tl.store(total + offsets, value, mask=exists)
    wide = value.to(tl.float32)
    unit = wide * tl.rsqrt(tl.sum(wide * wide) / SIZE + eps)
    # Rounded where Hugging Face's models round: before a weight of the model's dtype, and after.
    result = (unit.to(scale.dtype) * scale).to(value.dtype)
    tl.store(normed + offsets, result, mask=exists)
