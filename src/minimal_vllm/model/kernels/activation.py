"""Activations of a gated feed-forward network, as functions that kernels call.

Such a network computes ``activation(gate) * up``: SwiGLU with SiLU, GeGLU with GELU (Shazeer, 2020,
https://arxiv.org/abs/2002.05202). To add an activation, write a function, which takes and returns
float32, and add it to ``ACTIVATIONS``.
"""

from typing import Any

import triton
import triton.language as tl


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
