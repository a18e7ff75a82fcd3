"""Interfaces of a tensor in a file, and of the place in memory that it is loaded into."""

from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor


class StoredTensor(Protocol):
    """Tensor in a weights file of any format."""

    @property
    def path(self) -> Path:
        """File that holds the tensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape that the tensor has in the model."""

    @property
    def dtype(self) -> str:
        """Type in which the numbers are stored, by the format's own name."""

    @property
    def is_float(self) -> bool:
        """Whether ``copy_to`` can convert the numbers to the model's dtype."""

    @property
    def num_bytes(self) -> int:
        """Size in the file, in bytes."""

    def copy_to(self, destination: Tensor) -> None:
        """Fill ``destination``, which has the same shape, converting to its dtype and device."""

    def copy_range(self, destination: Tensor, dim: int, wanted: range) -> None:
        """Fill ``destination`` with a range of the indices along a dimension, as ``copy_to``.

        Args:
            destination: its shape is that of the range.
            dim: number of the dimension.
            wanted: consecutive indices along ``dim``.
        """


@runtime_checkable
class Destination(Protocol):
    """Place for a stored tensor whose layout in memory differs from that in the file.

    A tensor that is only copied needs none: its destination is the parameter, or rows of it.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape that the stored tensor must have."""

    @property
    def dtypes(self) -> tuple[str, ...] | None:
        """Types that the stored tensor may have. None: those of ``StoredTensor.is_float``."""

    def fill(self, stored: StoredTensor) -> None:
        """Read the tensor.

        Raises:
            ValueError: its numbers contradict the checkpoint's other tensors or its config.json.
        """
