"""What attention knows of a step, beside queries, keys and values."""

from dataclasses import dataclass

import torch
from torch import Tensor

from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.step.batch import Batch


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """What all kinds of attention know: where the new keys and values are written."""

    slots: Tensor
    """``[T]`` int64: each token's place in the cache, ``block * block_size + offset``."""


@dataclass(frozen=True, slots=True)
class PagedMetadata(AttentionMetadata):
    """Where each token stands and where its request's blocks are; see ``Batch`` for a drawing."""

    query_starts: Tensor
    """``[R + 1]`` int64: request ``r`` has the new tokens from ``query_starts[r]`` to ``[r+1]``."""
    seq_lens: Tensor
    """``[R]`` int64: tokens in the cache, the new ones included."""
    block_tables: Tensor
    """``[R, most blocks]`` int32, padded with 0."""

    @classmethod
    def from_batch(cls, batch: Batch, device: torch.device) -> "PagedMetadata":
        """Move the batch's arrays to the device."""
        return cls(
            slots=torch.from_numpy(batch.slot_mapping).to(device),
            query_starts=torch.from_numpy(batch.query_starts).to(device),
            seq_lens=torch.from_numpy(batch.seq_lens).to(device),
            block_tables=torch.from_numpy(batch.block_tables).to(device),
        )


def write_to_cache(k: Tensor, v: Tensor, cache: LayerCache, metadata: AttentionMetadata) -> None:
    """Store the new keys and values ``[T, K, D]`` in their slots."""
    block_size = cache.key.shape[2]
    block, offset = metadata.slots // block_size, metadata.slots % block_size
    cache.key.transpose(1, 2)[block, offset] = k
    cache.value.transpose(1, 2)[block, offset] = v
