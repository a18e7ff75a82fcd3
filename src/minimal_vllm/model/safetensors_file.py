"""Copying tensors out of safetensors files without holding the weights twice.

The library maps a file into memory. Pages that have been read count as the process's memory until
the file is closed. A tensor is therefore copied in windows, and the file is mapped anew for each
window.
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

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Dtypes that can be converted to the model's, by their safetensors names."""

DTYPES = {
    **FLOATS,
    "F8_E4M3": torch.float8_e4m3fn,
    "U8": torch.uint8,
    "I32": torch.int32,
    "I64": torch.int64,
}
"""Supported dtypes. Those that are not in ``FLOATS`` occur in quantized checkpoints."""

WINDOW_BYTES = 32 << 20
"""Bytes of a file that are read at a time: the memory that loading takes on top of the weights."""


@dataclass(frozen=True)
class SafetensorsTensor:
    """Tensor in a safetensors file; see ``StoredTensor``."""

    path: Path
    name: str
    shape: tuple[int, ...]
    """Shape of the tensor. A scalar counts as a vector of one number."""
    dtype: str
    """Name of the dtype in safetensors, such as ``BF16``."""

    @property
    def is_float(self) -> bool:
        """Whether the numbers can be converted to the model's dtype."""
        return self.dtype in FLOATS

    @property
    def num_bytes(self) -> int:
        """Size in the file, in bytes; only for a supported dtype."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize

    def copy_to(self, destination: Tensor) -> None:
        """Fill ``destination``, which has the same shape, converting to its dtype and device.

        Raises:
            ValueError: the file can no longer be read.
        """
        self.copy_range(destination, 0, range(self.shape[0]))

    def copy_range(self, destination: Tensor, dim: int, wanted: range) -> None:
        """Fill ``destination`` with a range of the tensor, and read only that from the file.

        See ``StoredTensor.copy_range``.

        Raises:
            ValueError: the file can no longer be read.
        """
        rows = wanted if dim == 0 else range(self.shape[0])
        columns: tuple[slice, ...] = ()
        if dim > 0:
            columns = (slice(None),) * (dim - 1) + (slice(wanted.start, wanted.stop),)
        bytes_per_row = destination[0].numel() * DTYPES[self.dtype].itemsize
        rows_at_a_time = max(1, WINDOW_BYTES // max(bytes_per_row, 1))
        for place in range(0, len(rows), rows_at_a_time):
            window = rows[place : place + rows_at_a_time]
            with _opened(self.path) as file:
                whole = file.get_slice(self.name)
                is_scalar = not whole.get_shape()
                rows_here = slice(window.start, window.stop)
                numbers = file.get_tensor(self.name) if is_scalar else whole[rows_here, *columns]
                destination[place : place + len(window)].copy_(numbers)


def read_header(path: Path) -> dict[str, SafetensorsTensor]:
    """Return the tensors of a file, by name. Their numbers stay in the file.

    Raises:
        ValueError: the file can't be read, isn't in the safetensors format, or is truncated.
    """
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return {
            name: SafetensorsTensor(path, name, tuple(part.get_shape()) or (1,), part.get_dtype())
            for name, part in slices.items()
        }


@contextmanager
def _opened(path: Path) -> "Iterator[Any]":
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
