"""SwiGLU's gate (Shazeer, 2020), ``silu(gate) * up``, in one pass: read both halves, write one."""

import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.device.launch import launch_options, wait_for_previous

BLOCK = 1024


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """``[T, 2 * inner]``, gates first -> ``[T, inner]``."""
    tokens, width = gate_up.shape
    inner = width // 2
    out = gate_up.new_empty(tokens, inner)
    _silu_and_mul_kernel[(tokens, triton.cdiv(inner, BLOCK))](
        gate_up, out, INNER=inner, BLOCK=BLOCK, num_warps=4, **launch_options(gate_up)
    )
    return out


@triton.jit
def _silu_and_mul_kernel(
    gate_up, out, INNER: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr
):
    wait_for_previous(EARLY)
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = column < INNER
    gate = tl.load(gate_up + token * (2 * INNER) + column, mask=exists, other=0.0)
    up = tl.load(gate_up + token * (2 * INNER) + INNER + column, mask=exists, other=0.0)
    tl.store(out + token * INNER + column, gated(gate, up), mask=exists)


@triton.jit
def gated(gate, up):  # noqa: ANN201 - a kernel's function
    """``silu(gate) * up``, rounded where PyTorch's two operations round."""
    wide = gate.to(tl.float32)
    return (wide * tl.sigmoid(wide)).to(gate.dtype) * up
