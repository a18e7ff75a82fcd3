"""The tensors behind the block ids.

One layer's keys (and, likewise, values) are a ``[B, K, S, D]`` tensor: block, kv head, position in
the block, head dimension. What one kv head stores in one block is contiguous (``S * D`` numbers,
e.g. 16 * 128 in bf16 = 4 KiB), and it is the unit in which attention reads.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minimal_vllm.model.config import ModelConfig


class LayerCache(NamedTuple):
    """Keys and values of one layer, each ``[num_blocks, num_kv_heads, block_size, head_dim]``."""

    key: Tensor
    value: Tensor


def allocate_kv_cache(
    config: ModelConfig,
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> list[LayerCache]:
    """The caches of all layers, zeroed.

    Zeroed, not empty: attention multiplies masked-out values by zero, and 0 * NaN would be NaN.
    """
    shape = (2, num_blocks, config.num_kv_heads, block_size, config.head_dim)
    return [LayerCache(*_zeros(shape, dtype, device)) for _ in range(config.num_layers)]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # NumPy's zeros come from calloc: a page of RAM is taken only when a block in it is first
    # written, where torch.zeros would touch the whole pool at start-up.
    numpy_bytes = np.zeros(int(np.prod(shape)) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(numpy_bytes).view(dtype).view(shape)
