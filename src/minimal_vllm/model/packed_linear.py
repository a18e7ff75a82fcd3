"""A decoder's projections on a CPU: weights in half precision, activations in float32.

A step with few tokens does little but read weights, so it takes half as long if they take half the
bytes. FBGEMM (https://github.com/pytorch/FBGEMM), a part of PyTorch, keeps a matrix in 16-bit
blocks that its kernels read in order, converts the numbers to float32 in registers, and adds up in
float32. So nothing is lost if each weight is a half-precision number to begin with, as it is in a
checkpoint in float16 or bfloat16::

    float32   1 sign   8 exponent   23 mantissa
    bfloat16  1 sign   8 exponent    7 mantissa      fits into float16 if 2**-17 <= |w| < 2**16
    float16   1 sign   5 exponent   10 mantissa

A matrix that would lose something stays as it is, unless the checkpoint has quantized it: its
dequantized numbers are rounded.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from minimal_vllm.model.layers import Modules
from minimal_vllm.model.linear import GatedLinear, Linear, Projection, RowLinear
from minimal_vllm.model.scripted import PackedMatrix, scripted

ROUNDING = 2.0**-24
"""Relative error that packing may add to a matrix: that of rounding its numbers to float32."""
QUANTIZED_ROUNDING = 2.0**-11
"""Relative error that it may add to a matrix that was quantized to 8 bits or fewer, by which the
matrix had lost at least ten times as much: that of rounding its numbers to half precision."""

_pack = torch.ops.quantized.linear_prepack_fp16.default


def multiply_packed(x: Tensor, matrix: PackedMatrix) -> Tensor:
    """Return ``x @ matrix.T`` plus the matrix's bias, ``[T, out]`` float32, for float32 ``x``."""
    product: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, matrix)
    return product


class PackedProjection(Projection):
    """Projection whose weight is packed once it is loaded, if that loses nothing."""

    packed: torch.ScriptObject | None = None
    """The packed weight and the bias. None: the weight isn't packed."""
    _multiply: Callable[[Tensor, PackedMatrix], Tensor]

    def after_loading(self, approximate: bool) -> None:
        """Replace the weight by a packed one of half the size; see ``Projection.after_loading``."""
        weight = self.weight.float()
        if relative_error(weight) <= (QUANTIZED_ROUNDING if approximate else ROUNDING):
            self.packed = _pack(weight, None if self.bias is None else self.bias.float())
            self._multiply = scripted(multiply_packed)
            del self.weight

    def multiply(self, x: Tensor) -> Tensor:
        """Return ``x @ weight.T + bias``; see ``Projection.multiply``."""
        if self.packed is None:
            return super().multiply(x)
        if x.dtype == torch.float32:
            return self._multiply(x, self.packed)
        return self._multiply(x.float(), self.packed).to(x.dtype)


class PackedLinear(PackedProjection, Linear):
    """Plain projection with a packed weight."""


class PackedRowLinear(PackedProjection, RowLinear):
    """Last projection of a sub-layer, with a packed weight."""


class PackedGatedLinear(PackedProjection, GatedLinear):
    """Gated projection with a packed weight."""


def relative_error(weight: Tensor) -> float:
    """Return ``|rounded - weight| / |weight|``, of a whole matrix rounded to half precision.

    In a matrix of bfloat16 numbers, only those below ``2**-17`` are rounded, by at most ``2**-25``.
    A number that half precision can't hold makes the error infinite.
    """
    error = torch.linalg.vector_norm(weight.half().float().sub_(weight))
    return float(error / torch.linalg.vector_norm(weight).clamp(min=torch.finfo().tiny))


def can_pack(dtype: torch.dtype) -> bool:
    """Return whether packed weights are the fastest on this CPU, for activations of ``dtype``.

    FBGEMM needs AVX2. A CPU that multiplies 16-bit numbers in hardware is faster without it, if
    the activations have 16 bits, too.
    """
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return False
    return dtype == torch.float32 or not can_multiply(dtype)


def can_multiply(dtype: torch.dtype) -> bool:
    """Return whether this CPU has instructions that multiply numbers of ``dtype``.

    What ARM's CPUs have is not known, so they count as having them.
    """
    if not torch.cpu._is_avx2_supported():
        return True
    match dtype:
        case torch.bfloat16:
            return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        case torch.float16:
            return torch.cpu._is_amx_fp16_supported()
        case _:
            return True


PACKED_MODULES = Modules(
    linear=PackedLinear, row_linear=PackedRowLinear, gated_linear=PackedGatedLinear
)
