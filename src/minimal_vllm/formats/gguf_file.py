"""Reading a GGUF file: its metadata, and its tensors' positions and numbers.

GGUF is llama.cpp's format: one file holds a model's configuration, tokenizer and weights, usually
quantized. Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

llama.cpp's ``gguf`` package names the types and dequantizes. Its ``GGUFReader`` is not used: it
makes two arrays for every element of a list, which takes seconds for a vocabulary, and it trusts
the lengths in a damaged file.
"""

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from minimal_vllm.formats.gguf_parts import is_later_part, parts_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4

# Values of tokenizer.ggml.token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

READABLE = (
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"),
)
"""Supported tensor types, by llama.cpp's names."""

# Value types of the metadata -> NumPy's code for a number of that type.
_NUMBERS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_FLOAT32 = 6
_STRING = 8
_ARRAY = 9


@dataclass(frozen=True)
class TensorInfo:
    """Name, shape, type and position of a tensor in a GGUF file."""

    path: Path
    """The file; models may be split into several."""
    name: str
    """Name of the tensor in llama.cpp, such as ``blk.0.attn_q.weight``."""
    shape: tuple[int, ...]
    """Shape in PyTorch's order: the dimension whose numbers are adjacent comes last."""
    type_name: str
    """Storage format of the numbers, such as ``Q4_K``."""
    offset: int
    """Position of the first byte in the file."""
    num_bytes: int
    """Size in the file, in bytes."""

    @property
    def num_rows(self) -> int:
        """Number of rows, each of ``shape[-1]`` numbers; a vector is one row."""
        return prod(self.shape[:-1])


@dataclass(frozen=True)
class GgufFile:
    """Header of a GGUF file: the metadata, and the list of tensors.

    A model that is split into several files has one header, with the tensors of all of them.
    """

    path: Path
    """The file, or the first of several."""
    metadata: dict[str, Any]
    """Values by key: numbers, booleans, strings, and lists of them."""
    tensors: dict[str, TensorInfo]

    def rows(self, name: str, first: int = 0, end: int | None = None) -> "NDArray[np.float32]":
        """Read and dequantize some rows of a tensor.

        Args:
            name: a key of ``tensors``.
            first: index of the first row. A vector is one row.
            end: index after the last row. Default: the number of rows.

        Returns:
            ``[end - first, tensor.shape[-1]]`` in float32.

        Raises:
            ValueError: the file can't be read, or has become shorter since its header was read.
        """
        import numpy as np  # imported late, for a fast --help
        from gguf import GGMLQuantizationType, dequantize

        tensor = self.tensors[name]
        end = tensor.num_rows if end is None else end
        row_bytes = tensor.num_bytes // tensor.num_rows
        num_bytes, offset = (end - first) * row_bytes, tensor.offset + first * row_bytes
        try:
            stored = np.fromfile(tensor.path, np.uint8, num_bytes, offset=offset)
        except OSError as error:
            raise ValueError(f"{tensor.path} can't be read: {error}") from error
        if len(stored) != num_bytes:
            raise ValueError(f"{tensor.path} is cut off within the tensor {name}")
        kind = GGMLQuantizationType[tensor.type_name]
        numbers: NDArray[np.float32] = dequantize(stored.reshape(end - first, row_bytes), kind)
        return numbers


def find_gguf(checkpoint: Path) -> Path | None:
    """Return the GGUF file that a checkpoint is or contains, or None.

    The path of a file is returned unchanged. A folder is a GGUF checkpoint if it has exactly one
    model in .gguf files and no safetensors. Of a model in several parts, the first one is returned.
    Vision projectors (``mmproj*.gguf``) don't count.

    Raises:
        ValueError: the folder has several models in .gguf files.
    """
    if checkpoint.is_file():
        return checkpoint
    if any(checkpoint.glob("model*.safetensors*")):
        return None
    files = sorted(
        path
        for path in checkpoint.glob("*.gguf")
        if not path.name.startswith("mmproj") and not is_later_part(path)
    )
    if len(files) > 1:
        names = ", ".join(path.name for path in files[:4])
        raise ValueError(
            f"{checkpoint} has {len(files)} .gguf files ({names}{', …' * (len(files) > 4)}): "
            "give the path of one of them as the model"
        )
    return files[0] if files else None


def read_gguf(path: Path) -> GgufFile:
    """Read the metadata and the list of tensors; the tensors' numbers stay in the file.

    Args:
        path: a file, or one part of a model that is split into several.

    Raises:
        ValueError: the file can't be read, is not a complete GGUF file, or has a tensor of an
            unsupported type; or a part of the model is missing.
    """
    paths = parts_of(path)
    missing = [each.name for each in paths if not each.is_file()]
    if missing and len(paths) > 1:
        raise ValueError(f"{path} is a part of a model, of which {', '.join(missing)} is missing")
    parts = [_read_header(each) for each in paths]
    count = parts[0].metadata.get("split.count", 1)
    if count != len(parts) and count != 0:
        raise ValueError(
            f"{path} is one of {count} parts of a model, but its name doesn't say so: name them "
            "NAME-00001-of-00002.gguf and so on, as llama.cpp does"
        )
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    if len(tensors) != sum(len(part.tensors) for part in parts):
        raise ValueError(f"two parts of {path} have tensors of the same name")
    return GgufFile(paths[0], parts[0].metadata, tensors)


def _read_header(path: Path) -> GgufFile:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _Header(path, file, size).read()
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror or error}") from error


class _Entry(NamedTuple):
    """One entry in the header's list of tensors."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int
    """Position of the first byte, counted from the beginning of the tensors' data."""


class _Header:
    """Reader of a file's header, front to back and never beyond the end of the file."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path = path
        self._file = file
        self._size = size
        self._position = 0

    def read(self) -> GgufFile:
        """Read the whole header."""
        self._check_format()
        num_tensors, num_values = self._integer("<Q"), self._integer("<Q")
        # A value takes at least 13 bytes and a tensor 24: don't start if the file is too small.
        self._check_room(13 * num_values + 24 * num_tensors)
        metadata: dict[str, Any] = {}
        for _ in range(num_values):
            key = self._string()
            if key in metadata:
                raise self._damaged(f"it has two values for {key}")
            metadata[key] = self._value(self._integer("<I"))
        found = [self._tensor() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment <= 0 or alignment % 8:
            raise self._damaged(f"general.alignment is {alignment!r}, not a multiple of 8")
        data_start = -(-self._position // alignment) * alignment
        tensors = {entry.name: self._located(entry, data_start) for entry in found}
        if len(tensors) != len(found):
            raise self._damaged("it has two tensors of the same name")
        return GgufFile(self._path, metadata, tensors)

    def _check_format(self) -> None:
        beginning = self._file.read(4)
        if beginning != MAGIC:
            is_pointer = beginning == b"vers"  # "version https://git-lfs.github.com/spec/v1"
            hint = "a Git LFS pointer: fetch it with `git lfs pull`" if is_pointer else beginning
            raise ValueError(f"{self._path} is not a GGUF file: it begins with {hint!r}")
        self._position = 4
        version = self._integer("<I")
        if version & 0xFFFF == 0:
            raise ValueError(f"{self._path} is a big-endian GGUF file, which is not supported")
        if version not in VERSIONS:
            raise ValueError(
                f"{self._path} has GGUF version {version}, but only {VERSIONS[0]} and "
                f"{VERSIONS[1]} are supported: convert the model again with a newer llama.cpp"
            )

    def _tensor(self) -> "_Entry":
        name = self._string()
        num_dimensions = self._integer("<I")
        if not 1 <= num_dimensions <= MAX_DIMENSIONS:
            raise self._damaged(f"the tensor {name} has {num_dimensions} dimensions")
        shape = tuple(self._integer("<Q") for _ in range(num_dimensions))[::-1]
        return _Entry(name, shape, self._integer("<I"), self._integer("<Q"))

    def _located(self, entry: "_Entry", data_start: int) -> TensorInfo:
        """Compute a tensor's position and size in the file, and check that it is complete."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        name, shape = entry.name, entry.shape
        type_name = _type_name(entry.type_id)
        if type_name not in READABLE:
            raise ValueError(
                f"{self._path}: the tensor {name} has the type {type_name}, which is not "
                f"supported; supported types: {', '.join(READABLE)}"
            )
        block_size, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[type_name]]
        if 0 in shape or shape[-1] % block_size:
            raise self._damaged(
                f"the tensor {name} has the shape {list(shape)}, but {type_name} needs rows of a "
                f"multiple of {block_size} numbers"
            )
        num_bytes = prod(shape) // block_size * block_bytes
        start = data_start + entry.offset
        end = start + num_bytes
        if end > self._size:
            raise ValueError(
                f"{self._path} is cut off or damaged: the tensor {name} ends at byte {end:,}, but "
                f"the file has only {self._size:,} bytes: download it again"
            )
        return TensorInfo(self._path, name, shape, type_name, start, num_bytes)

    def _value(self, value_type: int) -> Any:
        if value_type == _STRING:
            return self._string()
        if value_type == _ARRAY:
            return self._array()
        return self._numbers(value_type, 1)[0]

    def _array(self) -> list[Any]:
        element_type, count = self._integer("<I"), self._integer("<Q")
        if element_type == _STRING:
            self._check_room(8 * count)
            return [self._string() for _ in range(count)]
        return self._numbers(element_type, count)

    def _numbers(self, value_type: int, count: int) -> list[Any]:
        import numpy as np

        if value_type not in _NUMBERS:
            raise self._damaged(f"it has a value of the unknown type {value_type}")
        numbers = np.frombuffer(
            self._bytes(count * np.dtype(_NUMBERS[value_type]).itemsize), _NUMBERS[value_type]
        )
        if value_type == _FLOAT32 and count == 1:
            return [float(str(numbers[0]))]  # 1e-05, not 9.999999747378752e-06
        values: list[Any] = numbers.tolist()
        return values

    def _string(self) -> str:
        stored = self._bytes(self._integer("<Q"))
        try:
            return stored.decode()
        except UnicodeDecodeError as error:
            raise self._damaged("a text in it is not UTF-8") from error

    def _integer(self, code: str) -> int:
        number: int = struct.unpack(code, self._bytes(struct.calcsize(code)))[0]
        return number

    def _bytes(self, count: int) -> bytes:
        self._check_room(count)
        self._position += count
        found = self._file.read(count)
        if len(found) != count:
            raise self._damaged("it became shorter while it was being read")
        return found

    def _check_room(self, count: int) -> None:
        if count > self._size - self._position:
            raise self._damaged(
                f"its header continues beyond the end of the file, at byte {self._size:,}"
            )

    def _damaged(self, reason: str) -> ValueError:
        return ValueError(f"{self._path} is cut off or damaged: {reason}")


def _type_name(type_id: int) -> str:
    from gguf import GGMLQuantizationType

    try:
        return GGMLQuantizationType(type_id).name
    except ValueError:
        return f"number {type_id}"
