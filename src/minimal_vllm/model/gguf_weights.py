"""Reading the tensors of a GGUF file as if from a Hugging Face checkpoint."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minimal_vllm.formats.gguf_file import GgufFile, TensorInfo, read_gguf
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.gguf_config import ROPE_FACTORS

WINDOW_NUMBERS = 8 << 20
"""Numbers dequantized at a time: 32 MiB of float32, the memory that loading takes on top of the
weights."""

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class GgufTensor:
    """Tensor in a GGUF file; see ``StoredTensor``."""

    file: GgufFile
    info: TensorInfo
    interleaved_head_dim: int | None = None
    """Head size, if the two rows of each rotary pair are adjacent. None: the rows are stored in
    Hugging Face's order."""

    @property
    def path(self) -> Path:
        """File that holds the tensor."""
        return self.info.path

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape that the tensor has in the model."""
        return self.info.shape

    @property
    def dtype(self) -> str:
        """Type in which the numbers are stored, by llama.cpp's name, such as ``Q4_K``."""
        return self.info.type_name

    @property
    def is_float(self) -> bool:
        """Always true: ``copy_to`` dequantizes all types that ``read_gguf`` accepts."""
        return True

    @property
    def num_bytes(self) -> int:
        """Size in the file, in bytes."""
        return self.info.num_bytes

    def copy_to(self, destination: Tensor) -> None:
        """Fill ``destination``, which has the same shape, converting to its dtype and device.

        Raises:
            ValueError: the file can no longer be read.
        """
        self.copy_range(destination, 0, range(self.shape[0]))

    def copy_range(self, destination: Tensor, dim: int, wanted: range) -> None:
        """Fill ``destination`` with a range of the tensor; see ``StoredTensor.copy_range``.

        A range of rows is read alone. It must consist of whole heads, if the tensor has heads. Of
        columns, whole rows are read, because numbers are quantized in blocks along a row.

        Raises:
            ValueError: the file can no longer be read.
        """
        if len(self.shape) == 1:  # a vector is one row in the file
            vector = torch.from_numpy(self.file.rows(self.info.name, 0, 1))[0]
            destination.copy_(self._in_halves(vector)[wanted.start : wanted.stop])
            return
        rows = wanted if dim == 0 else range(self.shape[0])
        columns = slice(None) if dim == 0 else slice(wanted.start, wanted.stop)
        whole = self.interleaved_head_dim or 1
        step = max(1, WINDOW_NUMBERS // (self.shape[-1] * whole)) * whole
        for place in range(0, len(rows), step):
            window = rows[place : place + step]
            numbers = torch.from_numpy(self.file.rows(self.info.name, window.start, window.stop))
            destination[place : place + len(window)].copy_(self._in_halves(numbers)[:, columns])

    def _in_halves(self, rows: Tensor) -> Tensor:
        """Restore Hugging Face's order of each head's rows.

        llama.cpp rotates rows 2i and 2i + 1 together; Hugging Face, rows i and i + D / 2.
        llama.cpp's converter therefore moves row i to 2i, and row i + D / 2 to 2i + 1.
        """
        if self.interleaved_head_dim is None:
            return rows
        pairs = rows.view(-1, self.interleaved_head_dim // 2, 2, *rows.shape[1:])
        return pairs.transpose(1, 2).flatten(0, 2)


def gguf_tensors(path: Path, config: ModelConfig) -> dict[str, GgufTensor]:
    """Return the tensors of a GGUF file, by their Hugging Face names.

    A tensor that has no Hugging Face name keeps llama.cpp's name, and the loader rejects it.

    Raises:
        ValueError: the file can't be read, or isn't a complete GGUF file.
    """
    file = read_gguf(path)
    is_interleaved = file.metadata.get("general.architecture") == "llama"
    tensors = {}
    for name, info in file.tensors.items():
        if name == ROPE_FACTORS:  # belongs to the configuration
            continue
        has_heads = is_interleaved and re.search(r"\.attn_[qk]\.", name)
        head_dim = config.head_dim if has_heads else None
        tensors[_hugging_face_name(name)] = GgufTensor(file, info, head_dim)
    return tensors


def _hugging_face_name(name: str) -> str:
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
        layer, part, kind = match.groups()
        return f"model.layers.{layer}.{_LAYER_NAMES[part]}.{kind}" if part in _LAYER_NAMES else name
    part, _, kind = name.rpartition(".")
    return f"{_NAMES[part]}.{kind}" if part in _NAMES else name
