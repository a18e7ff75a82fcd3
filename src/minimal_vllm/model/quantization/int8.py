"""8-bit integer weights with a scale per row, and a product on a CPU that reads them as they are.

A weight is ``number * scale``, with a number from -127 to 127. The fast product is FBGEMM's
(https://github.com/pytorch/FBGEMM), a part of PyTorch, which multiplies integers by integers and
adds up in int32, without rounding. So activations have to become integers, too. Eight bits would be
too few for them: their rows have outliers. A number is therefore written with two digits, each of
which is an integer from -63 to 63::

    x  =  largest of the row / 63  *  (high  +  low / 126)          error at most 2**-13 / 63 …
          ───────────────────────      ────     ───
          a scale per token            1st row  2nd row  of the product that FBGEMM computes

Two rows take hardly longer than one, because the time goes into reading the weights. Their sums are
exact and a row's scale is its own, so that a token's sums don't depend on the others in its batch.
Only for a step of one token, the two sums may be added with another rounding. Digits have 7 bits
because CPUs without VNNI add pairs of products in 16 bits: ``2 * 127 * 127`` is below ``2**15``.

In a step of one token, each operation costs a microsecond or two, whatever it computes. So digits
are split and joined by products with tiny matrices (see ``Digits``).
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from minimal_vllm.model.linear import parameter
from minimal_vllm.model.quantization.staging import Expected, largest_of_rows
from minimal_vllm.model.quantization.weight import QuantizedWeight
from minimal_vllm.model.quantization_config import Int8OnTheFly
from minimal_vllm.model.scripted import PackedMatrix, scripted

LARGEST = 127
DIGIT = 63
"""The largest digit of an activation. FBGEMM's numbers are unsigned, so it stores digits from 1."""
BASE = 2 * DIGIT
"""Units of the second digit that make one of the first."""


class Digits(NamedTuple):
    """Constants to write numbers with two digits; TorchScript reads no globals."""

    factors: Tensor
    """``[2, 1]``: what a number of at most 1 is multiplied by, so that an integer is left of its
    first digit, or of both."""
    carry: Tensor
    """``[2, 2]``: matrix that takes the first digit out of the integer of both."""
    values: Tensor
    """``[1, 2]``: value of each digit, where the largest number is 1."""


DIGITS = Digits(
    factors=torch.tensor([[1.0], [BASE]]) * DIGIT,
    carry=torch.tensor([[1.0, 0.0], [-BASE, 1.0]]),
    values=torch.tensor([[1.0, 1 / BASE]]) / DIGIT,
)


class Int8Weight(QuantizedWeight):
    """Matrix in 8-bit integers.

    Args:
        in_size: length of an input vector.
        parts: output length of each fused projection.
    """

    def __init__(self, in_size: int, parts: Mapping[str, int]) -> None:
        super().__init__(in_size, parts)
        self.weight = parameter(self.out_size, in_size, dtype=torch.int8)
        self.scale = parameter(self.out_size, 1, dtype=torch.float32)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix; see ``QuantizedWeight.dequantized``."""
        return (self.weight.float() * self.scale).to(dtype)

    def init_random(self, generator: torch.Generator, std: float) -> None:
        """Fill the matrix; see ``QuantizedWeight.init_random``."""
        self.weight.random_(-LARGEST, LARGEST + 1, generator=generator)
        self.scale.fill_(std / 73.3)  # the standard deviation of numbers from -127 to 127


class PackedInt8Weight(Int8Weight):
    """Matrix in 8-bit integers, in the order in which FBGEMM reads them."""

    packed: torch.ScriptObject
    _multiply: Callable[[Tensor, PackedMatrix, Digits], Tensor]

    def after_loading(self) -> None:
        """Replace the weight by a packed one of the same size."""
        with warnings.catch_warnings():  # of a successor of quantized tensors, which has no product
            warnings.simplefilter("ignore", UserWarning)
            matrix = torch._make_per_channel_quantized_tensor(
                self.weight.data,
                self.scale.data.view(-1).double(),
                torch.zeros(self.out_size, dtype=torch.int64),
                0,
            )
        self.packed = torch.ops.quantized.linear_prepack(matrix, None)
        self._multiply = scripted(multiply_digits)
        del self.weight

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix; see ``QuantizedWeight.dequantized``."""
        matrix, _ = torch.ops.quantized.linear_unpack(self.packed)
        numbers: Tensor = matrix.int_repr().float()
        return (numbers * self.scale).to(dtype)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``x @ weight.T + bias``; see ``QuantizedWeight.product``."""
        product = self._multiply(x.float(), self.packed, DIGITS)
        return (product if bias is None else product.add_(bias)).to(x.dtype)


def multiply_digits(
    x: Tensor, matrix: PackedMatrix, digits: Digits, digit: int = DIGIT, base: int = BASE
) -> Tensor:
    """Return ``x @ matrix.T``, with ``x`` rounded to two digits.

    Args:
        x: ``[T, in]`` float32.
        matrix: ``[out, in]``, packed 8-bit integers with a scale per row.
        digits: see ``Digits``.
        digit: see ``DIGIT``.
        base: see ``BASE``.

    Returns:
        ``[T, out]`` float32.
    """
    largest = x.abs().amax(dim=1, keepdim=True).unsqueeze(2)
    written = two_digits(x.unsqueeze(1), largest, digits)
    products = multiply_integers(written.flatten(0, 1), matrix)
    return join_digits(products, largest, digit, base)


def two_digits(x: Tensor, largest: Tensor, digits: Digits, base: int = BASE) -> Tensor:
    """Write numbers with two digits, the second of which counts 126 times less.

    Args:
        x: ``[T, 1, in]`` float32.
        largest: ``[T, 1, 1]``: largest absolute number of each row. If it is 0, the digits are NaN.
            FBGEMM takes them for integers, and their product counts for 0.
        digits: see ``Digits``.
        base: see ``BASE``.

    Returns:
        ``[T, 2, in]`` float32: integers.
    """
    rounded = (digits.factors / largest * x).round_()
    rounded[:, 1].sub_(rounded[:, 0], alpha=base)
    return rounded


def join_digits(products: Tensor, largest: Tensor, digit: int, base: int) -> Tensor:
    """Return the product of numbers, ``[T, out]``, from those of their digits, ``[2 T, out]``."""
    high, low = products.view(len(largest), 2, products.shape[1]).unbind(1)
    return high.add_(low, alpha=1 / base).mul_(largest.squeeze(2) / digit)


def multiply_integers(integers: Tensor, matrix: PackedMatrix, zero: int = DIGIT + 1) -> Tensor:
    """Return ``integers @ matrix.T``, for ``[T, in]`` float32 integers that are digits."""
    product: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
        integers, 1.0, zero, matrix
    )
    return product


def multiply_digits_of_one(x: Tensor, matrix: PackedMatrix, digits: Digits) -> Tensor:
    """Return what ``multiply_digits`` returns for one token, ``[1, out]``, in fewer operations.

    Digits and their sums are the same. Joining two sums may round differently.
    """
    products, values = products_of_one(x, matrix, digits)
    return torch.mm(values, products)


def products_of_one(x: Tensor, matrix: PackedMatrix, digits: Digits) -> tuple[Tensor, Tensor]:
    """Return the products of both digits, ``[2, out]``, and the digits' values, ``[1, 2]``."""
    largest = x.abs().max()
    rounded = (digits.factors / largest * x).round_()
    products = multiply_integers(torch.mm(digits.carry, rounded), matrix)
    return products, digits.values * largest


@dataclass(frozen=True)
class Int8Quantizer:
    """Quantizes a matrix that is stored in any other type."""

    stored: Int8OnTheFly
    largest: Callable[[Tensor], Tensor] = largest_of_rows
    """Returns the largest absolute number of each row, ``[rows, 1]``."""

    def tensors(self, out_size: int, in_size: int) -> dict[str, Expected]:
        """Return the tensor of a matrix; see ``Reader``."""
        return {"weight": Expected((out_size, in_size), read_as=None)}

    def read(self, raw: Mapping[str, Tensor], rows_per_scale: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Quantize the matrix row by row; see ``Reader``."""
        wide = raw["weight"].float()
        scale = self.largest(wide).clamp(min=1e-30) / LARGEST
        return {"weight": (wide / scale).round().to(torch.int8), "scale": scale}


def can_multiply_int8() -> bool:
    """Return whether PyTorch has FBGEMM's product of integers, which needs AVX2."""
    return "fbgemm" in torch.backends.quantized.supported_engines
