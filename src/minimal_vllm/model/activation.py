"""Activation functions of the MLP's gate."""

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn.functional import gelu, silu

from minimal_vllm.model.supported import Activation

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": silu,
    "gelu_tanh": partial(gelu, approximate="tanh"),
}
"""Activation functions by name. ``kernels/activation.py`` has the same functions for Triton."""
