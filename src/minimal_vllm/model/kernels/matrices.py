"""Matrices of experts as kernels read them: in the model's dtype, or in MXFP4.

A tile in MXFP4 is read as bytes and scales, and becomes numbers in registers::

    packed [out, in / 2]    a byte has columns 2 i (low bits) and 2 i + 1
    scales [out, in / 32]   a byte has a power of 2, plus 127

The bits of a 4-bit number, moved to the place of the sign, of the last two bits of the exponent and
of the first bit of the mantissa, are a 16-bit floating-point number that is 2**14 times too small.
That takes no table. It is right for subnormal numbers, too, which 16-bit arithmetic has as well::

    e2m1      s ee m
    float16   s 000ee m000000000        16384 * float16(bits) * 2**(scale - 127)

Source: OCP Microscaling Formats (MX) Specification 1.0, 2023, section 5.3.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.model.quantization_config import MXFP4_GROUP

_GROUP = tl.constexpr(MXFP4_GROUP)
_TOO_SMALL = tl.constexpr(14)
_LARGEST = tl.constexpr(254)
"""Largest exponent of a finite float32 number."""


@dataclass(frozen=True, slots=True)
class Matrices:
    """One matrix per expert, ``[out, in]``."""

    numbers: Tensor
    """``[E, out, in]``, or in MXFP4 ``[E, out, in / 2]`` uint8; contiguous."""
    scales: Tensor | None
    """``[E, out, in / 32]`` uint8, contiguous. None: the numbers are not packed."""
    bias: Tensor | None
    """``[E, out]``, contiguous, or None."""
    takes_turns: bool = False
    """Whether rows of gate and up take turns, if these are their matrices. False: gate, then up."""

    @property
    def out_size(self) -> int:
        """Length of an output vector."""
        return self.numbers.shape[1]

    def options(self) -> dict[str, object]:
        """Return the arguments of a kernel that reads the matrices."""
        return {
            "matrices": self.numbers,
            "scales": self.numbers if self.scales is None else self.scales,
            "bias": self.numbers if self.bias is None else self.bias,
            "PACKED": self.scales is not None,
            "BIAS": self.bias is not None,
        }


@triton.jit
def mxfp4_tile(packed, scales, first, row, start, IN: tl.constexpr, WIDTH: tl.constexpr):  # noqa: ANN201
    """Return some columns of some rows of an expert's matrix in MXFP4.

    Args:
        packed: pointer to ``[rows, IN / 2]``, the matrices of all experts.
        scales: pointer to ``[rows, IN / 32]``.
        first: the expert's first row, int64.
        row: ``[ROWS]``: rows, counted from the first. They must exist.
        start: the first column, a multiple of 32. Columns from ``IN`` on are 0.
        IN: number of columns of the matrices.
        WIDTH: number of columns to return, a multiple of 32.

    Returns:
        ``[ROWS, WIDTH]`` float32.
    """
    group = start // _GROUP + tl.arange(0, WIDTH // _GROUP)
    exists = (group < IN // _GROUP)[None, :]
    of_group = row[:, None] * (IN // _GROUP) + group[None, :]
    scale = tl.load(scales + first * (IN // _GROUP) + of_group, mask=exists, other=0).to(tl.int32)
    factor = tl.minimum(scale + _TOO_SMALL, _LARGEST) << 23
    factor = factor.to(tl.float32, bitcast=True)[:, :, None]
    byte = tl.arange(0, _GROUP // 2)
    of_byte = of_group[:, :, None] * (_GROUP // 2) + byte[None, None, :]
    pairs = tl.load(packed + first * (IN // 2) + of_byte, mask=exists[:, :, None], other=0).to(
        tl.int32
    )
    tile = tl.interleave(_float(pairs & 15) * factor, _float(pairs >> 4) * factor)
    return tl.reshape(tile, [row.shape[0], WIDTH])


@triton.jit
def _float(bits):
    """Return 4-bit numbers divided by 2**14."""
    half = (bits & 7) << 9 | (bits & 8) << 12
    return half.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
