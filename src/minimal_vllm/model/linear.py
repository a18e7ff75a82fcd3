"""Projections: modules that own a weight matrix, and how to multiply by it.

Nothing outside a projection reads its weight. So a projection whose weight is quantized, sharded or
adapted is another class with the same ``forward``, chosen when the model is built (see
``layers.Modules``).
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from minimal_vllm.model.activation import ACTIVATIONS
from minimal_vllm.model.config import Activation
from minimal_vllm.model.deferred import Operand, computed


class TypedParameter(nn.Parameter):
    """A parameter that keeps its own dtype, whatever the model's is."""


def parameter(*shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
    """Return an uninitialized weight that is never trained.

    Args:
        *shape: its shape.
        dtype: its dtype. Default: the model's.
    """
    if dtype is None:
        return nn.Parameter(torch.empty(shape), requires_grad=False)
    return TypedParameter(torch.empty(shape, dtype=dtype), requires_grad=False)


class Projection(nn.Module):
    """Weight, and perhaps bias, of one or several of a checkpoint's projections of one input.

    Args:
        in_size: length of the input.
        parts: for each projection, its name in the checkpoint and the length of its output. The
            outputs stand one after another.
        bias: whether a bias is added.
    """

    def __init__(self, in_size: int, parts: dict[str, int], bias: bool) -> None:
        super().__init__()
        self.in_size = in_size
        self.parts = parts
        self.weight = parameter(sum(parts.values()), in_size)
        self.bias = parameter(sum(parts.values())) if bias else None

    def checkpoint_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the memory of each tensor that a checkpoint holds for this module.

        Names are relative to the module that this one is a part of.
        """
        for kind, fused in self.named_parameters(recurse=False):
            memory = torch.split(fused, list(self.parts.values()))
            for part, rows in zip(self.parts, memory, strict=True):
                yield f"{part}.{kind}", rows


class Linear(Projection):
    """A plain projection: ``x @ weight.T + bias``."""

    def share_weight(self, weight: nn.Parameter) -> None:
        """Use ``weight``, ``[out, in]``, which another module owns."""
        self.weight = weight

    def forward(self, x: Operand, out: Tensor | None = None) -> Tensor:
        """Project ``x``.

        Args:
            x: ``[T, in]``.
            out: ``[T, out]`` that the result is written to. Default: new memory.

        Returns:
            ``[T, out]``.
        """
        product = linear(computed(x), self.weight, self.bias)
        return product if out is None else out.copy_(product)


class RowLinear(Projection):
    """The projection that ends a sub-layer: its result is added to the residual stream."""

    def forward(self, x: Operand) -> Operand:
        """Project ``x``, ``[T, in]``, to ``[T, out]``."""
        return linear(computed(x), self.weight, self.bias)


class GatedLinear(Projection):
    """A gate and a projection of the same input: ``activation(gate(x)) * up(x)``.

    With SiLU this is SwiGLU, with GELU it is GeGLU (Shazeer 2020, https://arxiv.org/abs/2002.05202).

    Args:
        in_size: length of the input.
        out_size: length of the output.
        bias: whether a bias is added to the gate and to the projection.
        activation: name of the gate's activation, a key of ``ACTIVATIONS``.
    """

    def __init__(self, in_size: int, out_size: int, bias: bool, activation: Activation) -> None:
        super().__init__(in_size, {"gate_proj": out_size, "up_proj": out_size}, bias)
        self.activation = activation

    def forward(self, x: Operand) -> Tensor:
        """Project ``x``, ``[T, in]``, to ``[T, out]``."""
        gate, up = linear(computed(x), self.weight, self.bias).chunk(2, dim=-1)
        return ACTIVATIONS[self.activation](gate).mul_(up)
