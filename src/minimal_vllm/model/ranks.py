"""The processes that compute a model together, called ranks, and how their parts are joined.

Each rank runs the same code on the same tokens, and holds a share of the weights. A product whose
*columns* are divided needs no communication: each rank gets some of the outputs. The product after
it has its *rows* divided, that is, its inner sum: each rank gets a part of every output, and the
parts are added. So a sub-layer needs one sum over ranks.

Source: Shoeybi et al. 2019, Megatron-LM, https://arxiv.org/abs/1909.08053.
"""

from typing import Protocol

from torch import Tensor

from minimal_vllm.model.deferred import Operand


class Ranks(Protocol):
    """A rank's place among all ranks, and its way to them.

    All ranks must call the same methods in the same order.
    """

    @property
    def count(self) -> int:
        """Number of ranks."""

    @property
    def index(self) -> int:
        """Number of this rank, from 0."""

    def add(self, part: Operand) -> Operand:
        """Return the sum of all ranks' tensors of the same shape; may overwrite ``part``."""

    def concatenate(self, part: Tensor, out: Tensor | None = None) -> Tensor:
        """Return all ranks' ``[N, size]`` side by side, ``[N, count * size]``.

        Args:
            part: this rank's columns.
            out: memory for the result, which may lack some of the last columns.
        """

    def least(self, number: int) -> int:
        """Return the smallest of all ranks' numbers."""

    def raise_if_lost(self) -> None:
        """Raise a ``RankLostError`` if another rank is known to be gone."""

    def give_up(self) -> None:
        """End all exchanges, because another rank is gone; may be called by another thread."""


class Alone:
    """The only rank, which computes the whole model; see ``Ranks``."""

    count = 1
    index = 0

    def add(self, part: Operand) -> Operand:
        """Return ``part``."""
        return part

    def concatenate(self, part: Tensor, out: Tensor | None = None) -> Tensor:
        """Return ``part``, or write its columns to ``out``."""
        return part if out is None else side_by_side(part[None], out)

    def least(self, number: int) -> int:
        """Return ``number``."""
        return number

    def raise_if_lost(self) -> None:
        """Do nothing."""

    def give_up(self) -> None:
        """Do nothing."""


def side_by_side(parts: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the columns of all ranks; see ``Ranks.concatenate``.

    Args:
        parts: ``[ranks, N, size]``.
        out: see ``Ranks.concatenate``.
    """
    if out is None:
        return parts.transpose(0, 1).flatten(1)
    first = 0
    for part in parts:
        num_columns = min(part.shape[1], out.shape[1] - first)
        out[:, first : first + num_columns] = part[:, :num_columns]
        first += num_columns
    return out


ALONE = Alone()
