"""What every plain implementation needs of a batch, as tensors, and how the cache is written."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.step.batch import Batch


@dataclass(frozen=True, slots=True)
class PagedStep:
    """Where each token is, and where the blocks of its request are; ``Batch`` has a drawing.

    A step's attention may derive from it and add ``__call__``.
    """

    slots: Tensor
    """``[T]`` int64: each token's slot in the cache, ``block * block_size + offset``."""
    query_starts: Tensor
    """``[R + 1]`` int64: request ``r`` has the new tokens from ``query_starts[r]`` to ``[r+1]``."""
    seq_lens: Tensor
    """``[R]`` int64: number of tokens in the cache, the new ones included."""
    block_tables: Tensor
    """``[R, most blocks]`` int32, padded with 0."""

    @classmethod
    def from_batch(cls, batch: Batch, device: torch.device) -> Self:
        """Move the arrays of a batch to the device."""
        return cls(
            slots=torch.from_numpy(batch.slot_mapping).to(device),
            query_starts=torch.from_numpy(batch.query_starts).to(device),
            seq_lens=torch.from_numpy(batch.seq_lens).to(device),
            block_tables=torch.from_numpy(batch.block_tables).to(device),
        )


def write_to_cache(k: Tensor, v: Tensor, cache: LayerCache, slots: Tensor) -> None:
    """Store new keys and values in their slots.

    Args:
        k: ``[T, K, D]``.
        v: ``[T, K, D]``.
        cache: keys and values of the layer.
        slots: ``[T]`` int64, ``block * block_size + offset``.
    """
    block_size = cache.key.shape[2]
    block, offset = slots // block_size, slots % block_size
    cache.key.transpose(1, 2)[block, offset] = k
    cache.value.transpose(1, 2)[block, offset] = v
