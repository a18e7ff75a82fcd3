"""The gate of a feed-forward network in one pass over memory: read both halves, write one.

Gated networks: Shazeer, 2020, https://arxiv.org/abs/2002.05202.
"""

import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.model.kernels.activation import ACTIVATIONS, gated

BLOCK = 1024


def act_and_mul(gate_up: Tensor, activation: str) -> Tensor:
    """Return ``activation(gate) * up``.

    Args:
        gate_up: ``[T, 2 * inner]``, gates first, contiguous.
        activation: a key of ``ACTIVATIONS``.

    Returns:
        ``[T, inner]``
    """
    tokens, width = gate_up.shape
    inner = width // 2
    out = gate_up.new_empty(tokens, inner)
    _act_and_mul_kernel[(tokens, triton.cdiv(inner, BLOCK))](
        gate_up,
        out,
        INNER=inner,
        BLOCK=BLOCK,
        ACTIVATION=ACTIVATIONS[activation],
        num_warps=4,
        **launch_options(gate_up),
    )
    return out


@triton.jit
def _act_and_mul_kernel(
    gate_up,
    out,
    INNER: tl.constexpr,
    BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_previous(EARLY)
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = column < INNER
    gate = tl.load(gate_up + token * (2 * INNER) + column, mask=exists, other=0.0)
    up = tl.load(gate_up + token * (2 * INNER) + INNER + column, mask=exists, other=0.0)
    tl.store(out + token * INNER + column, gated(gate, up, ACTIVATION), mask=exists)
