"""Projections: modules that own a weight matrix and know how to multiply by it.

Nothing outside a projection reads its weight. A projection whose weight is quantized, sharded or
adapted (LoRA) is therefore another class with the same ``forward``, chosen when the model is built
(see ``layers.Modules``).
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from minimal_vllm.model.activation import ACTIVATIONS
from minimal_vllm.model.deferred import Operand, computed
from minimal_vllm.model.stored_tensor import Destination
from minimal_vllm.model.supported import Activation


class TypedParameter(nn.Parameter):
    """Parameter that keeps its own dtype instead of the model's."""


def parameter(*shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
    """Return an uninitialized parameter that needs no gradient.

    Args:
        *shape: shape of the parameter.
        dtype: dtype of the parameter. Default: the model's.
    """
    if dtype is None:
        return nn.Parameter(torch.empty(shape), requires_grad=False)
    return TypedParameter(torch.empty(shape, dtype=dtype), requires_grad=False)


class Projection(nn.Module):
    """One or several of a checkpoint's projections that share an input, fused into one matrix.

    Args:
        in_size: length of an input vector.
        parts: output length of each fused projection, by its name in the checkpoint. The outputs
            are concatenated in this order.
        bias: whether a bias is added.
    """

    def __init__(self, in_size: int, parts: dict[str, int], bias: bool) -> None:
        super().__init__()
        self.in_size = in_size
        self.parts = parts
        self.weight = parameter(sum(parts.values()), in_size)
        self.bias = parameter(sum(parts.values())) if bias else None

    def checkpoint_tensors(self) -> Iterator[tuple[str, Tensor | Destination]]:
        """Yield the name and the destination of each tensor that a checkpoint has for the module.

        Names are relative to the parent module.
        """
        for kind, fused in self.named_parameters(recurse=False):
            memory = torch.split(fused, list(self.parts.values()))
            for part, rows in zip(self.parts, memory, strict=True):
                yield f"{part}.{kind}", rows

    def after_loading(self, approximate: bool) -> None:
        """Convert the weight to another layout, once it is filled. Default: keep it.

        Args:
            approximate: whether the checkpoint's weights are quantized.
        """

    def multiply(self, x: Tensor) -> Tensor:
        """Return ``x @ weight.T + bias``, ``[T, out]``, for ``x`` of shape ``[T, in]``."""
        return linear(x, self.weight, self.bias)


class Linear(Projection):
    """Plain projection: ``x @ weight.T + bias``."""

    def share_weight(self, weight: nn.Parameter) -> None:
        """Use ``weight``, ``[out, in]``, which another module owns."""
        self.weight = weight

    def forward(self, x: Operand, out: Tensor | None = None) -> Tensor:
        """Project ``x``.

        Args:
            x: ``[T, in]``.
            out: ``[T, out]``, overwritten with the result. Default: newly allocated.

        Returns:
            ``[T, out]``.
        """
        product = self.multiply(computed(x))
        return product if out is None else out.copy_(product)


class RowLinear(Projection):
    """Last projection of a sub-layer, whose result is added to the residual stream."""

    def forward(self, x: Operand) -> Operand:
        """Project ``x``, ``[T, in]``, to ``[T, out]``."""
        return self.multiply(computed(x))


class GatedLinear(Projection):
    """Gated projection: ``activation(gate(x)) * up(x)``.

    SwiGLU with SiLU, GeGLU with GELU (Shazeer 2020, https://arxiv.org/abs/2002.05202).

    Args:
        in_size: length of an input vector.
        out_size: length of an output vector.
        bias: whether ``gate`` and ``up`` add a bias.
        activation: name of the gate's activation, a key of ``ACTIVATIONS``.
        fused: whether a checkpoint has ``gate_up_proj`` instead of ``gate_proj`` and ``up_proj``.
    """

    def __init__(
        self,
        in_size: int,
        out_size: int,
        bias: bool,
        activation: Activation,
        fused: bool = False,
    ) -> None:
        parts = {"gate_proj": out_size, "up_proj": out_size}
        super().__init__(in_size, {"gate_up_proj": 2 * out_size} if fused else parts, bias)
        self.activation = activation

    def forward(self, x: Operand) -> Tensor:
        """Project ``x``, ``[T, in]``, to ``[T, out]``."""
        gate, up = self.multiply(computed(x)).chunk(2, dim=-1)
        return ACTIVATIONS[self.activation](gate).mul_(up)
