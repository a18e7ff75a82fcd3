"""The tensors of the KV cache, which block ids refer to.

One layer's keys (and, likewise, values) are a ``[B, K, S, D]`` tensor: block, kv head, position in
the block, head dimension. The numbers of one kv head in one block are contiguous (``S * D``, e.g.
16 * 128 in bf16 = 4 KiB): the unit in which attention reads.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minimal_vllm.cache.layer_groups import LayerGroups


class LayerCache(NamedTuple):
    """Keys and values of one layer, each ``[num_blocks, num_kv_heads, block_size, head_dim]``."""

    key: Tensor
    value: Tensor


def allocate_kv_cache(
    *,
    groups: LayerGroups,
    num_blocks: int,
    num_kv_heads: int,
    block_size: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> list[LayerCache]:
    """Allocate the caches of all layers, filled with zeros.

    Layers with the same index in different groups share a tensor, but none of its blocks. The
    tensors must not be left uninitialized: attention multiplies masked values by zero, and 0 * NaN
    is NaN.
    """
    shape = (2, num_blocks, num_kv_heads, block_size, head_dim)
    caches = [LayerCache(*zeros(shape, dtype, device)) for _ in range(groups.size)]
    return [caches[place] for place in groups.places]


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor of zeros. On a CPU, it takes memory only where it has been written to."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # NumPy's zeros come from calloc: a page of RAM is taken only when a block in it is first
    # written, where torch.zeros would touch the whole pool at start-up.
    numpy_bytes = np.zeros(int(np.prod(shape)) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(numpy_bytes).view(dtype).view(shape)
