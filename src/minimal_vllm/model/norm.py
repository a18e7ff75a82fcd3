"""Root mean square normalization of the residual stream."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from minimal_vllm.model.deferred import Operand, computed
from minimal_vllm.model.linear import parameter


class RMSNorm(nn.Module):
    """Root mean square normalization (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467).

    Args:
        name: the norm's name in the checkpoint.
        size: length of the normalized vectors.
        eps: constant added to the mean square.
        exact: whether the weight is float32, and the product with it is rounded only once. Else
            the vector is rounded to the model's dtype before the product and after it.
    """

    def __init__(self, name: str, size: int, eps: float, exact: bool = False) -> None:
        super().__init__()
        self.name = name
        self.weight = parameter(size, dtype=torch.float32 if exact else None)
        self.eps = eps

    def forward(self, x: Operand, residual: Operand | None = None) -> tuple[Operand, Operand]:
        """Add ``x`` to the residual stream and normalize the sum.

        Args:
            x: ``[T, size]``.
            residual: ``[T, size]``: the residual stream; may be overwritten. None: there is no
                stream yet, and ``x`` starts it.

        Returns:
            The normalized sum, and the sum itself, which is the new residual stream.
        """
        residual = add(x, residual)
        return self.normalize(residual), residual

    def normalize(self, x: Operand) -> Tensor:
        """Normalize the last dimension of ``x`` in float32, rounding as transformers does."""
        x = computed(x)
        unit = rms_norm(x.to(self.weight.dtype), self.weight.shape, eps=self.eps)
        return (unit * self.weight).to(x.dtype)

    def checkpoint_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the destination of the tensor that a checkpoint has for the norm."""
        yield f"{self.name}.weight", self.weight


class NoNorm(nn.Module):
    """Placeholder where a layer has no norm."""

    def forward(self, x: Operand, residual: Operand | None = None) -> tuple[Operand, Operand]:
        """Add ``x`` to the residual stream and return the sum twice; see ``RMSNorm.forward``."""
        residual = add(x, residual)
        return residual, residual

    def normalize(self, x: Operand) -> Operand:
        """Return ``x`` unchanged."""
        return x


class Scaled(NoNorm):
    """Factor of a sub-layer's output, where a layer has no norm after it."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def normalize(self, x: Operand) -> Operand:
        """Return ``x`` times the factor."""
        return computed(x) * self.scale


def add(x: Operand, residual: Operand | None) -> Tensor:
    """Return ``residual + x``, computed in place; without a residual stream, return ``x``."""
    return computed(x) if residual is None else computed(residual).add_(computed(x))
