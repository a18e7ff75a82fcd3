"""4-bit integers with a scale per group of columns, in one layout for all formats.

A weight is ``(number - zero) * scale``, with a number from 0 to 15. A group is some neighboring
columns of a row, all of which share the scale and the zero point; the zero point of a symmetric
format is always 8. A byte holds two numbers of a row, 16 columns apart, so that neither half of a
kernel's registers has to be shuffled::

    columns   0 … 15 │ 16 … 31 │ 32 … 47 │ 48 … 63
    bytes     ▼ low  ▼ high    ▼ low     ▼ high         llama.cpp's Q4_0 has the same order
              0 … 15           16 … 31

Source: Frantar et al. 2022, https://arxiv.org/abs/2210.17323 (GPTQ, which groups columns).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from minimal_vllm.model.linear import parameter
from minimal_vllm.model.quantization.weight import QuantizedWeight
from minimal_vllm.model.quantization_config import Int4

HALF = 16
"""Distance of the columns of the two numbers in a byte."""
SYMMETRIC_ZERO = 8


class Int4Weight(QuantizedWeight):
    """Matrix in 4-bit integers.

    Args:
        in_size: length of an input vector.
        parts: output length of each fused projection.
        stored: group size, and whether there are zero points and an order of the columns.

    Raises:
        ValueError: the rows can't be cut into groups of that size.
    """

    def __init__(self, in_size: int, parts: Mapping[str, int], stored: Int4) -> None:
        super().__init__(in_size, parts)
        self.group_size = stored.group_size or in_size
        if in_size % self.group_size or in_size % (2 * HALF):
            raise ValueError(
                f"config.json: quantization_config: {', '.join(parts)} has {in_size} columns, "
                f"which must be a multiple of the group size, {self.group_size}, and of {2 * HALF}"
            )
        groups = self.out_size, in_size // self.group_size
        self.packed = parameter(self.out_size, in_size // 2, dtype=torch.uint8)
        self.scale = parameter(*groups)
        self.zero = None if stored.symmetric else parameter(*groups, dtype=torch.uint8)
        self.order = parameter(in_size, dtype=torch.int32) if stored.ordered else None
        """Input of each column, if the columns are ordered by their groups."""
        self._order_is_known = False

    def fill_part(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        """Store one fused projection; see ``QuantizedWeight.fill_part``.

        Raises:
            ValueError: fused projections have different orders.
        """
        rows = dict(tensors)
        order = rows.pop("order", None)
        if self.order is not None and order is not None:
            if self._order_is_known and not torch.equal(self.order, order):
                raise ValueError(
                    f"{', '.join(self.parts)} are computed in one product here, but their columns "
                    "are grouped in different orders: choose a checkpoint without desc_act"
                )
            self.order.copy_(order)
            self._order_is_known = True
        super().fill_part(part, rows)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix; see ``QuantizedWeight.dequantized``."""
        numbers = unpack(self.packed).view(self.out_size, -1, self.group_size).float()
        zero = SYMMETRIC_ZERO if self.zero is None else self.zero[..., None].float()
        weight = ((numbers - zero) * self.scale[..., None].float()).view(self.out_size, -1)
        if self.order is not None:
            weight = torch.empty_like(weight).index_copy_(1, self.order.long(), weight)
        return weight.to(dtype)

    def init_random(self, generator: torch.Generator, std: float) -> None:
        """Fill the matrix; see ``QuantizedWeight.init_random``."""
        self.packed.random_(generator=generator)
        self.scale.fill_(std / 4.6)  # the standard deviation of numbers from 0 to 15
        if self.zero is not None:
            self.zero.fill_(SYMMETRIC_ZERO)
        if self.order is not None:
            self.order.copy_(torch.arange(self.in_size))


def pack(numbers: Tensor) -> Tensor:
    """Pack numbers from 0 to 15, ``[out, in]``, into bytes, ``[out, in / 2]``."""
    halves = numbers.to(torch.uint8).view(len(numbers), -1, 2, HALF)
    return (halves[:, :, 0] | halves[:, :, 1] << 4).flatten(1)


def unpack(packed: Tensor) -> Tensor:
    """Unpack bytes, ``[out, in / 2]``, into numbers, ``[out, in]`` uint8; undoes ``pack``."""
    pairs = packed.view(len(packed), -1, HALF)
    return torch.stack((pairs & 15, pairs >> 4), dim=2).flatten(1)
