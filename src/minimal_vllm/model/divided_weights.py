"""A rank's share of a checkpoint: which range of each stored tensor it reads.

No table says which tensor is divided, and how. The network is built twice without memory: as a
whole, and as the rank's part of it. The dimension in which a tensor's two shapes differ is the one
that is divided; where they don't differ, each rank reads the whole tensor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.decoder import Decoder
from minimal_vllm.model.experts import Experts
from minimal_vllm.model.linear import RowLinear
from minimal_vllm.model.stored_tensor import Destination, StoredTensor


@dataclass(frozen=True)
class TensorShare:
    """Ranges of a stored tensor, one after the other; itself a ``StoredTensor``."""

    whole: StoredTensor
    dim: int
    """Dimension that is divided."""
    ranges: tuple[range, ...]
    """Ranges of indices along it."""
    sizes: tuple[int, ...]
    """Number of indices in the destination for each range. Those beyond the range become zero."""

    @property
    def path(self) -> Path:
        """File that holds the tensor."""
        return self.whole.path

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the share in the model."""
        shape = list(self.whole.shape)
        shape[self.dim] = sum(self.sizes)
        return tuple(shape)

    @property
    def dtype(self) -> str:
        """Type in which the numbers are stored; see ``StoredTensor``."""
        return self.whole.dtype

    @property
    def is_float(self) -> bool:
        """Whether the numbers can be converted; see ``StoredTensor``."""
        return self.whole.is_float

    @property
    def num_bytes(self) -> int:
        """Size of the share in the file, in bytes."""
        numbers = self.whole.num_bytes * sum(map(len, self.ranges))
        return numbers // self.whole.shape[self.dim]

    def copy_to(self, destination: Tensor) -> None:
        """Fill ``destination``; see ``StoredTensor.copy_to``."""
        places = torch.split(destination, list(self.sizes), self.dim)
        for place, wanted in zip(places, self.ranges, strict=True):
            count = len(wanted)
            place.narrow(self.dim, count, place.shape[self.dim] - count).zero_()
            if count:
                self.whole.copy_range(place.narrow(self.dim, 0, count), self.dim, wanted)

    def copy_range(self, destination: Tensor, dim: int, wanted: range) -> None:
        """Shares are not divided again."""
        raise NotImplementedError


@dataclass(frozen=True)
class Share:
    """A rank's share of a model."""

    whole: ModelConfig
    """Hyperparameters of the whole model."""
    rank: int


def take_shares(
    stored: Mapping[str, StoredTensor],
    destinations: Mapping[str, Tensor | Destination],
    share: Share,
    own: ModelConfig,
) -> dict[str, StoredTensor]:
    """Return a rank's share of each tensor of a checkpoint.

    Args:
        stored: tensors of the checkpoint, by name; each fits the whole model.
        destinations: places in the rank's model that the shares are loaded into.
        share: which share it is.
        own: hyperparameters of the rank's part of the model.
    """
    shares: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        own_shape = tuple(destinations[name].shape)
        differing = [dim for dim, size in enumerate(own_shape) if size != tensor.shape[dim]]
        if not differing:
            shares[name] = tensor
            continue
        (dim,) = differing
        fused = name.split(".")[-2]
        sizes = _fused_sizes(fused, own, own_shape[dim])
        whole_sizes = _fused_sizes(fused, share.whole, tensor.shape[dim])
        ranges = _ranges(whole_sizes, sizes, own.ranks, share.rank)
        shares[name] = TensorShare(tensor, dim, ranges, sizes)
    return shares


def drop_biases_of_sums(model: Decoder) -> None:
    """Set biases of products that are added over ranks to zero: only rank 0 adds them."""
    for module in model.modules():
        bias = None
        if isinstance(module, RowLinear):
            bias = module.bias
        elif isinstance(module, Experts):
            bias = module.down_bias
        if bias is not None:
            bias.zero_()


def _fused_sizes(name: str, model: ModelConfig, total: int) -> tuple[int, ...]:
    """Return how many of ``total`` indices each projection has in a checkpoint's fused tensor.

    An index is that of a row, of a group of rows with one scale, or of rows stored in one integer.
    """
    if name not in model.fused:
        return (total,)
    rows: tuple[int, ...] = (model.intermediate_size,) * 2
    if name != "gate_up_proj":
        q_size, kv_size = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
        rows = q_size, kv_size, kv_size
    return tuple(size * total // sum(rows) for size in rows)


def _ranges(
    whole_sizes: tuple[int, ...], own_sizes: tuple[int, ...], ranks: int, rank: int
) -> tuple[range, ...]:
    """Return the indices that a rank reads of each projection.

    Key-value heads that are fewer than the ranks are each read by several ranks in a row. The last
    rank's rows of the vocabulary may end before its table does.
    """
    ranges, first = [], 0
    for whole, own in zip(whole_sizes, own_sizes, strict=True):
        readers = own * ranks // whole
        begin = min(rank // readers * own, whole)
        ranges.append(range(first + begin, first + min(begin + own, whole)))
        first += whole
    return tuple(ranges)
