"""From a checkpoint's tensors to a layout in memory.

A quantized projection is several tensors in a file, such as integers, scales and zero points, which
may lie far apart or in different shards. They are kept as they are until all of them have been
read. Then the format's reader converts them. ::

    file    q_proj.qweight ─► fill ┐
            q_proj.qzeros  ─► fill ├─► Reader.read ─► weight.fill_part("q_proj", …)
            q_proj.scales  ─► fill ┘
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from minimal_vllm.model.stored_tensor import StoredTensor


@dataclass(frozen=True)
class Expected:
    """Shape and type of a tensor in a checkpoint."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...] | None = None
    """See ``Destination.dtypes``."""
    read_as: torch.dtype | None = torch.float32
    """Dtype in which ``Reader.read`` gets the tensor. None: as it is stored, if that is a 16-bit
    type, and float32 otherwise."""


class Reader(Protocol):
    """Reader of the matrices that a format stores, one for each projection."""

    def tensors(self, out_size: int, in_size: int) -> dict[str, Expected]:
        """Return the tensors that a matrix ``[out_size, in_size]`` consists of, by their names."""
        ...

    def read(self, raw: Mapping[str, Tensor], rows_per_scale: int) -> dict[str, Tensor]:
        """Convert the tensors of a matrix to the parameters of a quantized weight.

        Args:
            raw: the tensors that ``tensors`` lists.
            rows_per_scale: number of rows of the matrix for each row of scales in memory.

        Raises:
            ValueError: the tensors contradict each other.
        """
        ...


class Fillable(Protocol):
    """Quantized weight that is filled part by part; see ``QuantizedWeight``."""

    in_size: int
    rows_per_scale: int

    def fill_part(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        """Store one fused projection."""

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""


class _Stage:
    """The tensors of one matrix that have been read so far."""

    def __init__(self, reader: Reader, weight: Fillable, part: str, out_size: int) -> None:
        self.reader, self.weight, self.part = reader, weight, part
        self.expected = reader.tensors(out_size, weight.in_size)
        self.raw: dict[str, Tensor] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor; once all are there, convert them and forget them."""
        self.raw[name] = tensor.to(self.weight.device)
        if self.raw.keys() == self.expected.keys():
            try:
                rows = self.reader.read(self.raw, self.weight.rows_per_scale)
                self.weight.fill_part(self.part, rows)
            except ValueError as error:
                raise ValueError(f"{self.part}: {error}") from error
            self.raw.clear()


@dataclass(frozen=True)
class StagedTensor:
    """Place for one tensor of a quantized matrix; see ``Destination``."""

    stage: _Stage
    name: str
    expected: Expected

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape that the stored tensor must have."""
        return self.expected.shape

    @property
    def dtypes(self) -> tuple[str, ...] | None:
        """Types that the stored tensor may have."""
        return self.expected.dtypes

    def fill(self, stored: StoredTensor) -> None:
        """Read the tensor; see ``Destination.fill``."""
        dtype = self.expected.read_as or _HALVES.get(stored.dtype, torch.float32)
        tensor = torch.empty(stored.shape, dtype=dtype)
        stored.copy_to(tensor)
        try:
            self.stage.add(self.name, tensor)
        except ValueError as error:
            raise ValueError(f"{stored.path}: {error}") from error


_HALVES = {"BF16": torch.bfloat16, "F16": torch.float16}


def staged_tensors(
    reader: Reader, weight: Fillable, part: str, out_size: int
) -> dict[str, StagedTensor]:
    """Return the place of each tensor that a part of ``weight`` consists of, by its name."""
    stage = _Stage(reader, weight, part, out_size)
    return {name: StagedTensor(stage, name, each) for name, each in stage.expected.items()}


def largest_of_rows(numbers: Tensor) -> Tensor:
    """Return the largest absolute number of each row, ``[rows, 1]``."""
    return numbers.abs().amax(dim=1, keepdim=True)
