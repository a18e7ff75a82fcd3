"""Copying tensors out of safetensors files without holding the weights twice.

The library maps a file into memory. The pages that are touched count as the process's memory until
the file is closed, so a tensor is copied in windows, and the file is mapped anew for each.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""The dtypes that can be read, as safetensors names them."""

WINDOW_BYTES = 32 << 20
"""How much of a file is mapped at a time: the memory that loading takes beside the weights."""


@dataclass(frozen=True)
class SafetensorsTensor:
    """A tensor in a safetensors file."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    """As safetensors names it."""

    @property
    def is_readable(self) -> bool:
        """Whether its dtype can be read."""
        return self.dtype in DTYPES

    @property
    def num_bytes(self) -> int:
        """Its size in the file, if it is readable."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize

    def copy_to(self, destination: Tensor) -> None:
        """Fill ``destination``, which has the same shape, converting to its dtype and device.

        Raises:
            ValueError: if the file can't be read any more.
        """
        rows = self.shape[0]
        rows_at_a_time = max(1, WINDOW_BYTES * rows // max(self.num_bytes, 1))
        for first in range(0, rows, rows_at_a_time):
            window = slice(first, min(first + rows_at_a_time, rows))
            with _opened(self.path) as file:
                destination[window].copy_(file.get_slice(self.name)[window])


def read_header(path: Path) -> dict[str, SafetensorsTensor]:
    """What tensors a file holds, by name.

    Raises:
        ValueError: if the file can't be read, isn't in the safetensors format, or is cut short.
    """
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return {
            name: SafetensorsTensor(path, name, tuple(part.get_shape()), part.get_dtype())
            for name, part in slices.items()
        }


@contextmanager
def _opened(path: Path) -> "Iterator[Any]":
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
