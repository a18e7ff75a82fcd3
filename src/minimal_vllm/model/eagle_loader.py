"""Loading the weights of an EAGLE-3 head."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from minimal_vllm.model.eagle import EagleHead
from minimal_vllm.model.eagle_config import NUM_READ, EagleConfig
from minimal_vllm.model.loader import check_match, checkpoint_files, tensors_within
from minimal_vllm.model.safetensors_file import DTYPES, FLOATS, read_header
from minimal_vllm.model.stored_tensor import StoredTensor

OFFSETS = "d2t"
"""Tensor that has, for each token that a head can guess, the model's token id minus its own."""
MASK = "t2d"
"""Tensor that says which of the model's tokens these are; it is not needed."""


PICKLED_FILE = "pytorch_model.bin"
"""File that many heads are published in. Models in this format are refused, but most heads have no
other."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class PickledTensor:
    """Tensor in a file that PyTorch saved; see ``StoredTensor``."""

    path: Path
    numbers: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return tuple(self.numbers.shape)

    @property
    def dtype(self) -> str:
        """Name of the dtype in safetensors, or else in PyTorch."""
        return _NAMES.get(self.numbers.dtype, str(self.numbers.dtype))

    @property
    def is_float(self) -> bool:
        """Whether the numbers can be converted to the model's dtype."""
        return self.dtype in FLOATS

    @property
    def num_bytes(self) -> int:
        """Size in the file, in bytes."""
        return prod(self.shape) * self.numbers.itemsize

    def copy_to(self, destination: Tensor) -> None:
        """Fill ``destination``, which has the same shape."""
        destination.copy_(self.numbers)

    def copy_range(self, destination: Tensor, dim: int, wanted: range) -> None:
        """Fill ``destination`` with a range of the tensor; see ``StoredTensor.copy_range``."""
        destination.copy_(self.numbers.narrow(dim, wanted.start, len(wanted)))


def read_eagle(folder: Path) -> tuple[EagleConfig, Mapping[str, StoredTensor]]:
    """Read a head's config.json, and the shapes of its tensors.

    Returns:
        Its hyperparameters, and its tensors by their names in ``EagleHead``.

    Raises:
        ValueError: a file is missing or damaged, or it is not an EAGLE-3 head's.
    """
    config = EagleConfig.from_checkpoint(folder)
    tensors = {
        name.removeprefix("model.").replace("layers.0.", "midlayer."): tensor
        for name, tensor in _read_tensors(folder).items()
    }
    fused = tensors.get("fc.weight")
    if fused is not None and fused.shape[1] != NUM_READ * config.target_hidden_size:
        raise ValueError(
            f"the EAGLE-3 head {folder.name} reads {fused.shape[1]} numbers of the model, but its "
            f"config.json says {NUM_READ} hidden states of {config.target_hidden_size}"
        )
    return replace(config, has_embedding="embed_tokens.weight" in tensors), tensors


def _read_tensors(folder: Path) -> Mapping[str, StoredTensor]:
    pickled = folder / PICKLED_FILE
    if pickled.exists() and not list(folder.glob("*.safetensors")):
        return _unpickle(pickled)
    return {
        name: tensor
        for path in checkpoint_files(folder)
        for name, tensor in read_header(path).items()
    }


def _unpickle(path: Path) -> dict[str, PickledTensor]:
    """Return the tensors of a pickled file. A file with anything else is refused, not run."""
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a file of tensors that PyTorch saved: {reason}") from error
    if not isinstance(content, dict) or not all(
        isinstance(each, Tensor) for each in content.values()
    ):
        raise ValueError(f"{path} must hold a dictionary of tensors")
    return {name: PickledTensor(path, tensor) for name, tensor in content.items()}


def load_eagle(head: EagleHead, folder: Path, stored: Mapping[str, StoredTensor]) -> None:
    """Fill a head from its checkpoint.

    Args:
        head: the head.
        folder: its folder, to be named in errors.
        stored: its tensors, from ``read_eagle``.

    Raises:
        ValueError: the tensors don't match the head's shape, or name tokens that don't exist.
    """
    destinations = tensors_within(head)
    known = {name: each for name, each in stored.items() if name not in (OFFSETS, MASK)}
    check_match(folder, known, destinations)
    for name, tensor in known.items():
        destination = destinations[name]
        if isinstance(destination, Tensor):
            tensor.copy_to(destination)
        else:
            destination.fill(tensor)
    if OFFSETS in stored:
        _read_token_ids(head, folder, stored[OFFSETS])
    elif len(head.token_ids) != head.vocab_size:
        raise ValueError(
            f"the EAGLE-3 head {folder.name} guesses {len(head.token_ids):,} of the model's "
            f"{head.vocab_size:,} tokens, but has no tensor {OFFSETS} that says which"
        )
    head.after_loading()


def _read_token_ids(head: EagleHead, folder: Path, stored: StoredTensor) -> None:
    if stored.shape != tuple(head.token_ids.shape) or stored.dtype not in ("I64", "I32"):
        raise ValueError(
            f"the tensor {OFFSETS} of the EAGLE-3 head {folder.name} must hold "
            f"{len(head.token_ids)} integers, one for each token that it guesses"
        )
    offsets = torch.empty_like(head.token_ids)
    stored.copy_to(offsets)
    head.token_ids += offsets
    if head.token_ids.min() < 0 or head.token_ids.max() >= head.vocab_size:
        raise ValueError(
            f"the EAGLE-3 head {folder.name} guesses tokens that the model doesn't have: its "
            f"{OFFSETS} reaches {int(head.token_ids.max()):,}, and the model has "
            f"{head.vocab_size:,} tokens"
        )
