"""Products of 8-bit integers on a CPU with AMX, which multiplies them in tiles of 16 rows.

Intel's server CPUs have AMX (https://en.wikipedia.org/wiki/Advanced_Matrix_Extensions) since 2023.
Of PyTorch's products, those of oneDNN (https://github.com/uxlfoundation/oneDNN) use it. For the two
digits of 512 tokens, they take a third of the time of FBGEMM's (see ``int8``), with the same sums.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from minimal_vllm.model.quantization.int8 import (
    BASE,
    DIGIT,
    DIGITS,
    LARGEST,
    Digits,
    PackedInt8Weight,
    can_multiply_int8,
    join_digits,
    two_digits,
)
from minimal_vllm.model.scripted import scripted

SMALL = 2_000_000
"""Number of integers below which a matrix is also packed for FBGEMM. For one token, a product by
oneDNN takes 20 µs longer, which is at least a tenth of such a matrix's time. Only small models have
only small matrices."""
FEW_TOKENS = 2
"""Number of tokens up to which a small matrix is multiplied by FBGEMM."""


class Tiles(NamedTuple):
    """A matrix of 8-bit integers, and the scales of its rows."""

    integers: Tensor
    """The matrix in oneDNN's own layout."""
    scale: Tensor
    """``[out]`` float32."""
    zero: Tensor
    """``[1]`` int64: the integer that stands for 0, which is 0."""


class AmxInt8Weight(PackedInt8Weight):
    """Matrix in 8-bit integers, in the order in which AMX reads them.

    Args:
        in_size: length of an input vector.
        parts: output length of each fused projection.
    """

    tiles: Tiles
    _multiply_tiles: Callable[[Tensor, Tiles, Digits], Tensor]

    def __init__(self, in_size: int, parts: Mapping[str, int]) -> None:
        super().__init__(in_size, parts)
        self._is_small = self.weight.numel() < SMALL

    def after_loading(self) -> None:
        """Pack the weight into tiles and, if it is small, for FBGEMM as well."""
        integers = torch.ops.onednn.qlinear_prepack(self.weight.data, None)
        self.tiles = Tiles(integers, self.scale.data.view(-1), torch.zeros(1, dtype=torch.int64))
        self._multiply_tiles = scripted(multiply_tiles)
        if self._is_small:
            super().after_loading()
        else:
            del self.weight

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix, which is its product with the identity."""
        product = multiply_by_tiles(torch.eye(self.in_size), self.tiles)
        return product.T.contiguous().to(dtype)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``x @ weight.T + bias``; see ``QuantizedWeight.product``."""
        if len(x) <= FEW_TOKENS and self._is_small:
            return super().product(x, bias)
        if not len(x):
            return x.new_empty(0, self.out_size)
        product = self._multiply_tiles(x.float(), self.tiles, DIGITS)
        return (product if bias is None else product.add_(bias)).to(x.dtype)


def multiply_tiles(
    x: Tensor, tiles: Tiles, digits: Digits, digit: int = DIGIT, base: int = BASE
) -> Tensor:
    """Return ``x @ matrix.T``, with ``x`` rounded to two digits; see ``multiply_digits``."""
    largest = x.abs().amax(dim=1, keepdim=True).unsqueeze(2)
    written = two_digits(x.unsqueeze(1), largest, digits)
    products = multiply_by_tiles(written.flatten(0, 1), tiles)
    return join_digits(products, largest, digit, base)


def multiply_by_tiles(integers: Tensor, tiles: Tiles) -> Tensor:
    """Return ``integers @ matrix.T``, for ``[T, in]`` float32 integers from -127 to 127."""
    matrix, scale, zero = tiles
    product: Tensor = torch.ops.onednn.qlinear_pointwise(
        integers.to(torch.int8),
        1.0,
        0,
        matrix,
        scale,
        zero,
        None,
        1.0,
        0,
        torch.float32,
        "none",
        [],
        "",
    )
    return product


def can_multiply_tiles() -> bool:
    """Return whether this CPU has AMX, the system lets it be used, and PyTorch's products use it.

    Without AMX, oneDNN's product of these integers is slow, and on older CPUs it overflows. The
    environment variable ``ONEDNN_MAX_CPU_ISA`` makes oneDNN treat a CPU as an older one.
    """
    if not (torch._C._has_mkldnn and can_multiply_int8()):
        return False
    return torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx() and _sums_are_exact()


def _sums_are_exact() -> bool:
    """Return whether the largest integers don't overflow in oneDNN's product."""
    weight = torch.full((16, 64), LARGEST, dtype=torch.int8)
    integers = torch.ops.onednn.qlinear_prepack(weight, None)
    tiles = Tiles(integers, torch.ones(16), torch.zeros(1, dtype=torch.int64))
    product = multiply_by_tiles(torch.full((2, 64), float(DIGIT)), tiles)
    return bool((product == DIGIT * LARGEST * 64).all())
