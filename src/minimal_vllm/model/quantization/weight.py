"""A projection whose matrix is quantized: the matrix, and the three kinds of projections."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from copy import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from minimal_vllm.model.activation import ACTIVATIONS
from minimal_vllm.model.deferred import Operand, computed
from minimal_vllm.model.linear import GatedLinear, Linear, Projection, RowLinear
from minimal_vllm.model.quantization.staging import Reader, staged_tensors
from minimal_vllm.model.stored_tensor import Destination
from minimal_vllm.model.supported import Activation


class QuantizedWeight(nn.Module, ABC):
    """Matrix of a projection, ``[out, in]``, in a layout that takes fewer bytes.

    ``product`` is the oracle of all kernels: it dequantizes the matrix and multiplies by it.

    Args:
        in_size: length of an input vector.
        parts: output length of each fused projection, by its name in the checkpoint.
    """

    def __init__(self, in_size: int, parts: Mapping[str, int]) -> None:
        super().__init__()
        self.in_size = in_size
        self.parts = dict(parts)
        self.rows_per_scale = 1

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    @property
    def out_size(self) -> int:
        """Length of an output vector."""
        return sum(self.parts.values())

    @abstractmethod
    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix, ``[out, in]``, computed in float32 and rounded to ``dtype``."""

    @abstractmethod
    def init_random(self, generator: torch.Generator, std: float) -> None:
        """Fill the matrix with random numbers of about that standard deviation."""

    def fill_part(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        """Store one fused projection.

        Args:
            part: a key of ``parts``.
            tensors: values of the part's rows, by the name of the parameter that they belong to.

        Raises:
            ValueError: the fused projections don't fit together.
        """
        names = list(self.parts)
        for name, values in tensors.items():
            memory = self.get_parameter(name)
            sizes = [size * len(memory) // self.out_size for size in self.parts.values()]
            torch.split(memory, sizes)[names.index(part)].copy_(values)

    def rows(self, start: int, stop: int) -> "QuantizedWeight":
        """Return some rows as a matrix that shares the memory of this one.

        Args:
            start: first row, a multiple of ``rows_per_scale``, as is ``stop``.
            stop: row after the last one.
        """
        some = copy(self)
        some.parts = {"rows": stop - start}
        some._parameters = {
            name: nn.Parameter(self._rows_of(memory, start, stop), requires_grad=False)
            for name, memory in self.named_parameters()
        }
        return some

    def _rows_of(self, memory: Tensor, start: int, stop: int) -> Tensor:
        """Return what a parameter has for some of the matrix's rows."""
        height = len(memory)
        return memory[start * height // self.out_size : stop * height // self.out_size]

    def multiply(
        self, x: Operand, bias: Tensor | None, activation: Activation | None = None
    ) -> Tensor:
        """Return ``x @ weight.T + bias``, and apply a gate to it if there is an activation.

        Args:
            x: ``[T, in]``.
            bias: ``[out]`` or None.
            activation: name of the gate's activation. The first half of the product is the gate.

        Returns:
            ``[T, out]``, or ``[T, out / 2]`` if gated.
        """
        product = self.product(computed(x), bias)
        if activation is None:
            return product
        gate, up = product.chunk(2, dim=-1)
        return ACTIVATIONS[activation](gate).mul_(up)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``x @ weight.T + bias``, ``[T, out]``; see ``multiply``."""
        return linear(x, self.dequantized(x.dtype), bias)

    def after_loading(self) -> None:
        """Convert the matrix to another layout, once it is filled. Default: keep it."""


class _Quantized(Projection):
    """Projection whose matrix is a ``QuantizedWeight``."""

    def __init__(self, projection: Projection, weight: QuantizedWeight, reader: Reader) -> None:
        nn.Module.__init__(self)
        self.in_size = projection.in_size
        self.parts = projection.parts
        self.quantized = weight
        self.bias = projection.bias
        self.reader = reader

    def checkpoint_tensors(self) -> Iterator[tuple[str, Tensor | Destination]]:
        """Yield the name and the destination of each tensor; see ``Projection``."""
        if self.bias is not None:
            rows = torch.split(self.bias, list(self.parts.values()))
            for part, memory in zip(self.parts, rows, strict=True):
                yield f"{part}.bias", memory
        for part, out_size in self.parts.items():
            for name, place in staged_tensors(self.reader, self.quantized, part, out_size).items():
                yield f"{part}.{name}", place

    def after_loading(self, approximate: bool) -> None:  # noqa: ARG002
        """Let the matrix convert itself; see ``Projection.after_loading``."""
        self.quantized.after_loading()


class QuantizedLinear(_Quantized, Linear):
    """Plain projection with a quantized matrix."""

    def after_loading(self, approximate: bool) -> None:
        """Quantize the weight that another module owns, if ``share_weight`` has named one."""
        if "weight" in self._parameters:
            (part,) = self.parts
            rows = self.reader.read({"weight": self.weight}, self.quantized.rows_per_scale)
            self.quantized.fill_part(part, rows)
            del self.weight
        super().after_loading(approximate)

    def forward(self, x: Operand, out: Tensor | None = None) -> Tensor:
        """Project ``x``; see ``Linear.forward``."""
        product = self.quantized.multiply(x, self.bias)
        return product if out is None else out.copy_(product)


class QuantizedRowLinear(_Quantized, RowLinear):
    """Last projection of a sub-layer, with a quantized matrix."""

    def forward(self, x: Operand) -> Operand:
        """Project ``x``; see ``RowLinear.forward``."""
        return self.quantized.multiply(x, self.bias)


class QuantizedGatedLinear(_Quantized, GatedLinear):
    """Gated projection with a quantized matrix."""

    def __init__(self, projection: GatedLinear, weight: QuantizedWeight, reader: Reader) -> None:
        super().__init__(projection, weight, reader)
        self.activation = projection.activation

    def forward(self, x: Operand) -> Tensor:
        """Project ``x``; see ``GatedLinear.forward``."""
        return self.quantized.multiply(x, self.bias, self.activation)


def quantize(projection: Projection, weight: QuantizedWeight, reader: Reader) -> Projection:
    """Return a projection of the same kind whose matrix is ``weight``."""
    match projection:
        case GatedLinear():
            return QuantizedGatedLinear(projection, weight, reader)
        case RowLinear():
            return QuantizedRowLinear(projection, weight, reader)
        case _:
            return QuantizedLinear(projection, weight, reader)
