"""Code that the plain implementations share: a batch as tensors, and writing to the cache."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.step.batch import Batch


@dataclass(frozen=True, slots=True)
class PagedStep:
    """Cache slots and block tables of a step, as tensors; ``Batch`` has a drawing.

    An implementation of ``StepAttention`` can derive from this class and add ``__call__``.
    """

    slots: Tensor
    """Cache slot of each token, ``block * block_size + offset``: ``[T]`` int64."""
    query_starts: Tensor
    """``[R + 1]`` int64: index of each request's first new token, and their number at the end."""
    seq_lens: Tensor
    """``[R]`` int64: number of each request's tokens in the cache, the new ones included."""
    block_tables: Tensor
    """``[R, max blocks]`` int32: blocks of each request, padded with 0."""

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
    """Write new keys and values to their cache slots.

    Args:
        k: ``[T, K, D]``: keys.
        v: ``[T, K, D]``: values.
        cache: keys and values of the layer; written to.
        slots: ``[T]`` int64: cache slot of each token, ``block * block_size + offset``.
    """
    block_size = cache.key.shape[2]
    block, offset = slots // block_size, slots % block_size
    cache.key.transpose(1, 2)[block, offset] = as_cached(k, cache.key.dtype)
    cache.value.transpose(1, 2)[block, offset] = as_cached(v, cache.value.dtype)


def as_cached(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Return keys or values in the dtype of the cache. FP8 is cut off at its largest number."""
    if dtype.itemsize == 1:
        largest = torch.finfo(dtype).max
        numbers = numbers.clamp(-largest, largest)
    return numbers.to(dtype)
