"""Activations of a gated feed-forward network, as functions that kernels call.

Such a network computes ``activation(gate) * up``: SwiGLU with SiLU, GeGLU with GELU (Shazeer, 2020,
https://arxiv.org/abs/2002.05202). To add an activation, write a function, which takes and returns
float32, and add it to ``ACTIVATIONS``.
"""

from typing import Any

import triton
import triton.language as tl

from minimal_vllm.model.supported import ClampedGate, Gate


@triton.jit
def silu(x):  # noqa: ANN201 - Triton's language
    """Return ``x * sigmoid(x)``."""
    return x * tl.sigmoid(x)


@triton.jit
def gelu_tanh(x):  # noqa: ANN201 - Triton's language
    """Return GELU in its tanh approximation: ``x / 2 * (1 + tanh(y))``, with ``y`` of ``x``.

    ``(1 + tanh(y)) / 2`` is ``sigmoid(2 * y)``. Source: Hendrycks and Gimpel, 2016,
    https://arxiv.org/abs/1606.08415.
    """
    y = 0.7978845608028654 * (x + 0.044715 * x * x * x)  # the factor is sqrt(2 / pi)
    return x * tl.sigmoid(2 * y)


ACTIVATIONS: dict[str, Any] = {"silu": silu, "gelu_tanh": gelu_tanh}
"""Activation functions by name. ``model/activation.py`` has the same functions in PyTorch."""


@triton.jit
def gated(gate, up, ACTIVATION: tl.constexpr):  # noqa: ANN201 - Triton's language
    """Return ``ACTIVATION(gate) * up``, rounded where PyTorch's two operations round."""
    return ACTIVATION(gate.to(tl.float32)).to(gate.dtype) * up


@triton.jit
def clamped_gate(gate, up, LIMIT: tl.constexpr, SLOPE: tl.constexpr):  # noqa: ANN201
    """Return ``gate * sigmoid(SLOPE * gate) * (up + 1)``, clamped; see ``ClampedGate``."""
    wide, wide_up = gate.to(tl.float32), up.to(tl.float32)
    wide = tl.where(wide > LIMIT, LIMIT, wide)  # what is not a number stays so
    wide_up = tl.where(wide_up > LIMIT, LIMIT, wide_up)
    wide_up = tl.where(wide_up < -LIMIT, -LIMIT, wide_up)
    return (wide * tl.sigmoid(SLOPE * wide) * (wide_up + 1)).to(gate.dtype)


@triton.jit
def combined(gate, up, ACTIVATION: tl.constexpr, LIMIT: tl.constexpr, SLOPE: tl.constexpr):  # noqa: ANN201
    """Return gate and up combined; the constants are those of ``gate_options``."""
    if ACTIVATION is None:
        return clamped_gate(gate, up, LIMIT, SLOPE)
    else:  # noqa: RET505 - a branch of Triton's
        return gated(gate, up, ACTIVATION)


def gate_options(how: Gate) -> dict[str, Any]:
    """Return the constants of a kernel that calls ``combined``."""
    if isinstance(how, ClampedGate):
        return {"ACTIVATION": None, "LIMIT": how.limit, "SLOPE": how.slope}
    return {"ACTIVATION": ACTIVATIONS[how], "LIMIT": None, "SLOPE": None}
