"""FP8 weights: 8-bit floating-point numbers with float32 scales.

An e4m3 number has a sign, 4 bits of exponent and 3 of mantissa: its relative error is at most
1/16, and its range reaches from 2**-9 to 448. A scale per row or block moves the weights into that
range::

    weight [out, in] e4m3    ┌────────┬────────┐
                             │ block  │ block  │  × scale [out / rows, in / columns]
                             ├────────┼────────┤
                             └────────┴────────┘

Sources: Micikevicius et al. 2022, https://arxiv.org/abs/2209.05433 (the numbers); DeepSeek-V3 2024,
https://arxiv.org/abs/2412.19437, section 3.3 (blocks of 128 × 128).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, gcd

import torch
from torch import Tensor

from minimal_vllm.model.linear import parameter
from minimal_vllm.model.quantization.staging import Expected, largest_of_rows
from minimal_vllm.model.quantization.weight import QuantizedWeight
from minimal_vllm.model.quantization_config import Fp8Blocks, Fp8OnTheFly, Fp8Rows

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max


class Fp8Weight(QuantizedWeight):
    """Matrix in FP8.

    Args:
        in_size: length of an input vector.
        parts: output length of each fused projection.
        block: rows and columns that share a scale. Default: each row has one scale.
    """

    def __init__(
        self, in_size: int, parts: Mapping[str, int], block: tuple[int, int] | None = None
    ) -> None:
        super().__init__(in_size, parts)
        rows, self.columns_per_scale = block or (1, in_size)
        # If a fused projection doesn't end with a block, the scales are stored for fewer rows.
        self.rows_per_scale = gcd(rows, *parts.values())
        scales = self.out_size // self.rows_per_scale, ceil(in_size / self.columns_per_scale)
        self.weight = parameter(self.out_size, in_size, dtype=FP8)
        self.scale = parameter(*scales, dtype=torch.float32)

    @property
    def has_row_scales(self) -> bool:
        """Whether each row has one scale."""
        return self.rows_per_scale == 1 and self.columns_per_scale == self.in_size

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix; see ``QuantizedWeight.dequantized``."""
        if self.has_row_scales:
            return (self.weight.float() * self.scale).to(dtype)
        scale = self.scale.repeat_interleave(self.rows_per_scale, dim=0)
        scale = scale.repeat_interleave(self.columns_per_scale, dim=1)[:, : self.in_size]
        return (self.weight.float() * scale).to(dtype)

    def init_random(self, generator: torch.Generator, std: float) -> None:
        """Fill the matrix; see ``QuantizedWeight.init_random``."""
        self.scale.fill_(std / 16)
        for rows in torch.split(self.weight, 1024):
            numbers = torch.randn(rows.shape, generator=generator, device=rows.device)
            rows.copy_(numbers * 16)


@dataclass(frozen=True)
class Fp8BlockReader:
    """Reads a matrix in blocks that share a scale."""

    stored: Fp8Blocks

    def tensors(self, out_size: int, in_size: int) -> dict[str, Expected]:
        """Return the tensors of a matrix; see ``Reader``."""
        blocks = ceil(out_size / self.stored.rows), ceil(in_size / self.stored.columns)
        return {"weight": _stored_fp8(out_size, in_size), "weight_scale": Expected(blocks)}

    def read(self, raw: Mapping[str, Tensor], rows_per_scale: int) -> dict[str, Tensor]:
        """Convert the tensors of a matrix; see ``Reader``."""
        scale = raw["weight_scale"].repeat_interleave(self.stored.rows // rows_per_scale, dim=0)
        return {"weight": raw["weight"], "scale": scale[: len(raw["weight"]) // rows_per_scale]}


@dataclass(frozen=True)
class Fp8RowReader:
    """Reads a matrix with one scale per row, or one for the whole matrix."""

    stored: Fp8Rows

    def tensors(self, out_size: int, in_size: int) -> dict[str, Expected]:
        """Return the tensors of a matrix; see ``Reader``."""
        scales = Expected((1,)) if self.stored.scales == 1 else Expected((out_size, 1))
        return {"weight": _stored_fp8(out_size, in_size), "weight_scale": scales}

    def read(self, raw: Mapping[str, Tensor], rows_per_scale: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Convert the tensors of a matrix; see ``Reader``."""
        weight = raw["weight"]
        return {"weight": weight, "scale": raw["weight_scale"].expand(len(weight), 1)}


@dataclass(frozen=True)
class Fp8Quantizer:
    """Quantizes a matrix that is stored in 16 or 32 bits."""

    stored: Fp8OnTheFly
    largest: Callable[[Tensor], Tensor] = largest_of_rows
    """See ``quantize_rows``."""

    def tensors(self, out_size: int, in_size: int) -> dict[str, Expected]:
        """Return the tensor of a matrix; see ``Reader``."""
        return {"weight": Expected((out_size, in_size), read_as=None)}

    def read(self, raw: Mapping[str, Tensor], rows_per_scale: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Quantize the matrix row by row; see ``Reader``."""
        weight, scale = quantize_rows(raw["weight"], self.largest)
        return {"weight": weight, "scale": scale}


def quantize_rows(
    numbers: Tensor, largest: Callable[[Tensor], Tensor] = largest_of_rows
) -> tuple[Tensor, Tensor]:
    """Quantize each row with the scale that makes its largest number the largest of FP8.

    Args:
        numbers: ``[rows, columns]``.
        largest: returns the largest absolute number of each row, ``[rows, 1]``.

    Returns:
        ``[rows, columns]`` e4m3, and the scales, ``[rows, 1]`` float32.
    """
    wide = numbers.float()
    scale = largest(wide).clamp(min=1e-12) / LARGEST
    return (wide / scale).clamp(-LARGEST, LARGEST).to(FP8), scale


def _stored_fp8(out_size: int, in_size: int) -> Expected:
    return Expected((out_size, in_size), ("F8_E4M3",), FP8)
