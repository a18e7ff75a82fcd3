"""4-bit integers with a scale per group of columns, in one layout for all formats.

A weight is ``(number - zero) * scale``, with a number from 0 to 15. A group is some neighboring
columns of a row, all of which share the scale and the zero point; the zero point of a symmetric
format is always 8. An int32, a *word*, holds eight numbers. Four words hold a *run* of 32 columns,
and the same bits of all four hold neighboring columns::

    bits of the 4 words      0 … 3    4 … 7    8 … 11    …    28 … 31
    columns of their run     0 … 3    4 … 7    8 … 11    …    28 … 31

A GPU's thread loads the four words at once. It multiplies the numbers at the same bits with
neighboring inputs, and needs no other thread's numbers.

Source: Frantar et al. 2022, https://arxiv.org/abs/2210.17323 (GPTQ, which groups columns).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from minimal_vllm.model.linear import parameter
from minimal_vllm.model.quantization.weight import QuantizedWeight
from minimal_vllm.model.quantization_config import Int4

RUN = 32
"""Columns of a run."""
WORDS = 4
"""Words of a run."""
PER_WORD = RUN // WORDS
"""Numbers in a word."""
BITS = 4
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
        if in_size % self.group_size or in_size % RUN:
            raise ValueError(
                f"config.json: quantization_config: {', '.join(parts)} has {in_size} columns, "
                f"which must be a multiple of the group size, {self.group_size}, and of {RUN}"
            )
        groups = self.out_size, in_size // self.group_size
        self.packed = parameter(self.out_size, in_size // PER_WORD, dtype=torch.int32)
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
        self.packed.random_(-(2**31), 2**31, generator=generator)
        self.scale.fill_(std / 4.6)  # the standard deviation of numbers from 0 to 15
        if self.zero is not None:
            self.zero.fill_(SYMMETRIC_ZERO)
        if self.order is not None:
            self.order.copy_(torch.arange(self.in_size))


def pack(numbers: Tensor) -> Tensor:
    """Pack numbers from 0 to 15, ``[out, in]``, into words, ``[out, in / 8]`` int32."""
    runs = numbers.to(torch.int32).view(len(numbers), -1, PER_WORD, WORDS)
    words = torch.zeros_like(runs[:, :, 0])
    for place in range(PER_WORD):
        words |= runs[:, :, place] << BITS * place
    return words.flatten(1)


def unpack(packed: Tensor) -> Tensor:
    """Unpack words, ``[out, in / 8]``, into numbers, ``[out, in]`` uint8; undoes ``pack``."""
    words = packed.view(len(packed), -1, 1, WORDS)
    places = torch.arange(PER_WORD, dtype=torch.int32, device=packed.device)[:, None]
    return (words >> BITS * places & 15).to(torch.uint8).flatten(1)
