"""Readers of 4-bit integers in three published formats, each of which packs 8 into an int32.

====================  ==================  ==================  ==========================
tensor                compressed-tensors  AutoAWQ             GPTQ
====================  ==================  ==================  ==========================
numbers               weight_packed       qweight             qweight
                      [out, in / 8]       [in, out / 8]       [in / 8, out]
scales                weight_scale        scales              scales
                      [out, groups]       [groups, out]       [groups, out]
zero points           weight_zero_point   qzeros              qzeros
                      [out / 8, groups]   [groups, out / 8]   [groups, out / 8]
group of each column  weight_g_idx [in]   –                   g_idx [in]
====================  ==================  ==================  ==========================

AutoAWQ interleaves the 8 numbers of an int32: see ``AWQ_ORDER``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from minimal_vllm.model.quantization.int4 import SYMMETRIC_ZERO, pack
from minimal_vllm.model.quantization.staging import Expected
from minimal_vllm.model.quantization_config import AwqInt4, GptqInt4, PackedInt4

PER_INT32 = 8
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Place in an int32, counted from its lowest bits, of each of the 8 numbers that it holds."""


@dataclass(frozen=True)
class PackedReader:
    """Reads the format ``pack-quantized`` of compressed-tensors."""

    stored: PackedInt4

    def tensors(self, out_size: int, in_size: int) -> dict[str, Expected]:
        """Return the tensors of a matrix; see ``Reader``."""
        groups = in_size // (self.stored.group_size or in_size)
        tensors = {
            "weight_packed": _integers(out_size, in_size // PER_INT32),
            "weight_scale": Expected((out_size, groups)),
        }
        if not self.stored.symmetric:
            tensors["weight_zero_point"] = _integers(ceil(out_size / PER_INT32), groups)
        if self.stored.ordered:
            tensors["weight_g_idx"] = _integers(in_size)
        return tensors

    def read(self, raw: Mapping[str, Tensor], rows_per_scale: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Convert the tensors of a matrix; see ``Reader``."""
        scale = raw["weight_scale"]
        zero = None
        if not self.stored.symmetric:
            zero = unpack_int32(raw["weight_zero_point"].T).T[: len(scale)]
        return _layout(unpack_int32(raw["weight_packed"]), scale, zero, raw.get("weight_g_idx"))


@dataclass(frozen=True)
class AwqReader:
    """Reads AutoAWQ's format."""

    stored: AwqInt4

    def tensors(self, out_size: int, in_size: int) -> dict[str, Expected]:
        """Return the tensors of a matrix; see ``Reader``."""
        groups = in_size // (self.stored.group_size or in_size)
        return {
            "qweight": _integers(in_size, out_size // PER_INT32),
            "qzeros": _integers(groups, out_size // PER_INT32),
            "scales": Expected((groups, out_size)),
        }

    def read(self, raw: Mapping[str, Tensor], rows_per_scale: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Convert the tensors of a matrix; see ``Reader``."""
        numbers = unpack_int32(raw["qweight"], AWQ_ORDER).T
        zero = unpack_int32(raw["qzeros"], AWQ_ORDER).T
        return _layout(numbers, raw["scales"].T, zero, None)


@dataclass(frozen=True)
class GptqReader:
    """Reads AutoGPTQ's and GPTQModel's format."""

    stored: GptqInt4

    def tensors(self, out_size: int, in_size: int) -> dict[str, Expected]:
        """Return the tensors of a matrix; see ``Reader``."""
        groups = in_size // (self.stored.group_size or in_size)
        return {
            "qweight": _integers(in_size // PER_INT32, out_size),
            "qzeros": _integers(groups, ceil(out_size / PER_INT32)),
            "scales": Expected((groups, out_size)),
            "g_idx": _integers(in_size),
        }

    def read(self, raw: Mapping[str, Tensor], rows_per_scale: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Convert the tensors of a matrix; see ``Reader``.

        Raises:
            ValueError: zero points or groups contradict config.json.
        """
        scale, groups = raw["scales"].T, raw["g_idx"]
        numbers = unpack_int32(raw["qweight"].T)
        zero = (unpack_int32(raw["qzeros"]).T[: len(scale)] + self.stored.zero_offset) % 16
        if self.stored.symmetric and not bool((zero == SYMMETRIC_ZERO).all()):
            raise ValueError(f"config.json says sym, but not all zero points are {SYMMETRIC_ZERO}")
        if not self.stored.ordered and not torch.equal(groups, groups.sort().values):
            raise ValueError("g_idx reorders the columns, but config.json doesn't say desc_act")
        return _layout(
            numbers,
            scale,
            None if self.stored.symmetric else zero,
            groups if self.stored.ordered else None,
        )


def unpack_int32(packed: Tensor, places: tuple[int, ...] = tuple(range(PER_INT32))) -> Tensor:
    """Return the 4-bit numbers that each int32 holds, as a matrix 8 times as wide.

    Args:
        packed: ``[rows, columns / 8]`` int32.
        places: place in the int32 of each of the 8 numbers, counted from the lowest bits.
    """
    shifts = 4 * torch.tensor(places, dtype=torch.int32, device=packed.device)
    return (packed[..., None] >> shifts & 15).flatten(1)


def _layout(
    numbers: Tensor, scale: Tensor, zero: Tensor | None, groups: Tensor | None
) -> dict[str, Tensor]:
    """Return the parameters of an ``Int4Weight``.

    Args:
        numbers: ``[out, in]``.
        scale: ``[out, groups]``.
        zero: ``[out, groups]``, or None.
        groups: ``[in]``: group of each column. None: neighboring columns form a group.

    Raises:
        ValueError: the groups have different sizes.
    """
    rows = {"scale": scale}
    if zero is not None:
        rows["zero"] = zero
    if groups is not None:
        sizes = groups.bincount(minlength=scale.shape[1])
        if len(sizes) != scale.shape[1] or int(sizes.min()) != int(sizes.max()):
            raise ValueError("the groups of the columns have different sizes")
        order = groups.argsort(stable=True)
        numbers, rows["order"] = numbers[:, order], order
    return {"packed": pack(numbers), **rows}


def _integers(*shape: int) -> Expected:
    return Expected(shape, ("I32",), torch.int32)
