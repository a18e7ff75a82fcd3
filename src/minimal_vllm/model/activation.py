"""Activation functions of the MLP's gate."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, sigmoid
from torch.nn.functional import gelu, silu

from minimal_vllm.model.supported import Activation, ClampedGate, Gate

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": silu,
    "gelu_tanh": partial(gelu, approximate="tanh"),
}
"""Activation functions by name. ``kernels/activation.py`` has the same functions for Triton."""


def apply_gate(how: Gate, gate: Tensor, up: Tensor) -> Tensor:
    """Combine gate and up, which may be overwritten and have one shape."""
    if isinstance(how, ClampedGate):
        gate, up = gate.clamp(max=how.limit), up.clamp(-how.limit, how.limit)
        return (up + 1) * (gate * sigmoid(gate * how.slope))
    return ACTIVATIONS[how](gate).mul_(up)
