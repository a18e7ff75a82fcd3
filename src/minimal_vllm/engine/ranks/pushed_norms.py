"""Sums over a few GPUs that end in the residual stream and its norm, and columns of all of them.

See ``pushed_norm`` and ``pushed_columns`` for how they are computed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minimal_vllm.model.kernels.pushed_columns import pushed_columns
from minimal_vllm.model.kernels.pushed_norm import (
    DividedPlaces,
    WholePlaces,
    divided_norm,
    rows_of_rank,
    whole_norm,
)
from minimal_vllm.model.kernels.pushed_sum import Farewell

MAX_WHOLE_BYTES = 4 << 20
"""Maximum number of bytes that a rank sends for a sum whose tokens are not divided."""
MAX_BYTES = 130 << 20
"""Maximum number of bytes of a rank's tensor: 16,640 tokens with 4,096 numbers of 16 bits."""
LONGEST_VECTOR = 16384
"""Maximum number of a token's numbers, which a program holds in registers."""
PROGRAMS = 256
"""Number of programs, few enough that all of them run at once."""
ALIGNMENT = 16
"""Bytes that a thread loads at once. The length of a slot is a multiple of it."""
BITS = {2: torch.int16, 4: torch.int32}
"""Integers with as many bytes as a number."""


@dataclass(frozen=True)
class NormSizes:
    """Sizes of a rank's memory for ``PushedNorms``, in bytes.

    Args:
        count: number of ranks.
        max_whole: see ``MAX_WHOLE_BYTES``.
        most: see ``MAX_BYTES``.
        programs: see ``PROGRAMS``.
    """

    count: int
    max_whole: int = MAX_WHOLE_BYTES
    most: int = MAX_BYTES
    programs: int = PROGRAMS

    @property
    def whole_slot(self) -> int:
        """Bytes of a slot for a tensor whose tokens are not divided."""
        return self.max_whole // max(self.count - 1, 1) // ALIGNMENT * ALIGNMENT

    @property
    def divided_slot(self) -> int:
        """Bytes of a slot for a rank's share of a tensor."""
        return self.most // self.count // ALIGNMENT * ALIGNMENT

    @property
    def parts(self) -> list[int]:
        """Bytes of flags, of the slots of both kinds, and of norms."""
        whole = 3 * self.count * self.whole_slot
        divided = (self.count - 1) * self.divided_slot
        return [self.count * self.programs * 4, whole, divided, self.most]


class PushedNorms:
    """Sums over the GPUs of one host, added to the residual stream and normalized.

    All sums have vectors of the same length and dtype.

    Args:
        memories: memory of each rank, ``[sum(sizes.parts)]`` uint8, filled with zeros. All ranks
            can write it.
        index: number of this rank.
        sizes: sizes of its parts.
        farewell: whether a rank is gone; see ``tagged_sum``.
    """

    def __init__(
        self, memories: list[Tensor], index: int, sizes: NormSizes, farewell: Farewell
    ) -> None:
        self._index, self._sizes, self._farewell = index, sizes, farewell
        self._parts = [torch.split(each, sizes.parts) for each in memories]
        self._flags = tuple(flags.view(torch.int32) for flags, *_ in self._parts)
        self._notes = memories[index].new_zeros(3, sizes.programs, dtype=torch.int32)
        self._kind: tuple[int, torch.dtype] | None = None

    def fits(self, parts: Tensor, dtype: torch.dtype) -> bool:
        """Return whether the sum of parts, in a dtype, can be computed by ``add``."""
        if parts.dim() != 3 or parts.shape[2] > LONGEST_VECTOR:
            return False
        _, tokens, size = parts.shape
        share = rows_of_rank(tokens, self._sizes.count) * size * dtype.itemsize
        return self._kind in (None, (size, dtype)) and share <= self._sizes.divided_slot

    def divides(self, parts: Tensor, dtype: torch.dtype) -> bool:
        """Return whether the tokens of a tensor that fits are divided among the ranks."""
        return parts[0].numel() * dtype.itemsize > self._sizes.whole_slot

    def add(self, parts: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Add the sum of parts that fit to the residual stream; return the stream's norm.

        The norm is kept until the next sum. If tokens are divided, only those of this rank are
        right in the stream.
        """
        self._set_kind(parts.shape[2], residual.dtype)
        if self.divides(parts, residual.dtype):
            return divided_norm(parts, residual, weight, eps, self._divided, self._index)
        return whole_norm(parts, residual, weight, eps, self._whole, self._index)

    def fits_columns(self, part: Tensor) -> bool:
        """Return whether ``concatenate`` has room for a rank's columns."""
        return part.numel() * part.itemsize <= self._sizes.divided_slot

    def concatenate(self, part: Tensor, out: Tensor) -> Tensor:
        """Put all ranks' columns side by side; see ``pushed_columns``."""
        slots = tuple(divided.view(out.dtype) for _, _, divided, _ in self._parts)
        exchanges, *_ = self._notes
        return pushed_columns(part, out, slots, self._flags, exchanges, self._farewell, self._index)

    def _set_kind(self, size: int, dtype: torch.dtype) -> None:
        """Prepare sums of the first vectors' kind."""
        if self._kind is not None:
            return
        self._kind = size, dtype
        _, whole, divided, normed = zip(*self._parts, strict=True)
        exchanges, turns, last = self._notes
        bits = BITS[dtype.itemsize]
        self._whole = WholePlaces(
            tuple(each.view(bits) for each in whole), turns, last, self._farewell
        )
        self._divided = DividedPlaces(
            tuple(each.view(dtype) for each in divided),
            tuple(each.view(dtype) for each in normed),
            self._flags,
            exchanges,
            self._farewell,
        )
