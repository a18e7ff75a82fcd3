"""Sums over a few GPUs that end in the residual stream and its norm; see the kernel."""

from dataclasses import dataclass

import torch
from torch import Tensor

from minimal_vllm.engine.ranks.pushed_sums import jump_ahead, stream_beside
from minimal_vllm.model.kernels.pushed_norm import DividedPlaces, divided_norm, rows_of_rank

LEAST_BYTES = 4 << 20
"""Bytes of a tensor whose tokens are not divided: up to them, a single exchange is faster."""
MOST_BYTES = 128 << 20
"""Maximum number of bytes of a rank's tensor: 16,384 tokens with 4,096 numbers of 16 bits."""
LONGEST_VECTOR = 16384
"""Maximum number of a token's numbers, which a program holds in registers."""
PROGRAMS = 256
"""Number of programs: so many that all of them run at once."""
ALIGNMENT = 16
"""Slots have a multiple of so many bytes, which threads load at once."""


@dataclass(frozen=True)
class NormSizes:
    """Sizes of a rank's memory for ``PushedNorms``, in bytes.

    Args:
        count: number of ranks.
        least: see ``LEAST_BYTES``.
        most: see ``MOST_BYTES``.
        programs: see ``PROGRAMS``.
    """

    count: int
    least: int = LEAST_BYTES
    most: int = MOST_BYTES
    programs: int = PROGRAMS

    @property
    def slot(self) -> int:
        """Bytes of a slot for a rank's share of a tensor."""
        return self.most // self.count // ALIGNMENT * ALIGNMENT

    @property
    def parts(self) -> list[int]:
        """Bytes of flags, of slots, and of norms."""
        return [self.count * self.programs * 4, (self.count - 1) * self.slot, self.most]


class PushedNorms:
    """Sums over the GPUs of one host, added to the residual stream and normalized.

    Args:
        memories: memory of each rank, ``[sum(sizes.parts)]`` uint8, filled with zeros. All ranks
            can write it.
        index: number of this rank.
        sizes: sizes of its parts.
    """

    def __init__(self, memories: list[Tensor], index: int, sizes: NormSizes) -> None:
        self._index, self._sizes = index, sizes
        self._parts = [torch.split(each, sizes.parts) for each in memories]
        self._flags = tuple(flags.view(torch.int32) for flags, _, _ in self._parts)
        self._exchanges = memories[index].new_zeros(sizes.programs, dtype=torch.int32)
        self._beside = stream_beside(memories[index])
        self._places: dict[torch.dtype, DividedPlaces] = {}

    def fits(self, parts: Tensor, dtype: torch.dtype) -> bool:
        """Return whether the sum of parts, in a dtype, is one that ``add`` should compute."""
        if parts.dim() != 3 or parts.shape[2] > LONGEST_VECTOR:
            return False
        _, tokens, size = parts.shape
        vector = size * dtype.itemsize
        share = rows_of_rank(tokens, self._sizes.count) * vector
        return tokens * vector > self._sizes.least and share <= self._sizes.slot

    def add(self, parts: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Add a sum that fits to the residual stream, and return the stream's norm.

        The norm is kept until the next sum. In the stream, only the tokens of this rank are right.
        """
        places = self._places_of(residual.dtype)
        return divided_norm(parts, residual, weight, eps, places, self._index)

    def give_up(self) -> None:
        """Let sums that wait for a rank end; see ``PushedSums.give_up``."""
        with torch.cuda.stream(self._beside):
            jump_ahead(self._flags[self._index], self._exchanges)

    def _places_of(self, dtype: torch.dtype) -> DividedPlaces:
        if dtype not in self._places:
            _, slots, normed = zip(*self._parts, strict=True)
            self._places[dtype] = DividedPlaces(
                tuple(each.view(dtype) for each in slots),
                tuple(each.view(dtype) for each in normed),
                self._flags,
                self._exchanges,
            )
        return self._places[dtype]
