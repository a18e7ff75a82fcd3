"""The one interface of attention, and which implementation is used."""

from typing import Protocol

import torch
from torch import Tensor

from minimal_vllm.attention.metadata import AttentionMetadata
from minimal_vllm.attention.reference import ReferenceAttention
from minimal_vllm.attention.tiled import TiledAttention
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.engine.batch import Batch
from minimal_vllm.model.config import ModelConfig


class Attention(Protocol):
    """Paged attention. All implementations have this signature and give the same result."""

    def prepare(self, batch: Batch) -> AttentionMetadata:
        """What all layers of one step share, computed once."""
        ...

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cache: LayerCache,
        metadata: AttentionMetadata,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """Write the step's keys and values to the cache, then attend over it, causally.

        All are written before any is read: a request may share blocks that another one of the
        same step fills.

        Args:
            q: ``[T, H, D]``.
            k: ``[T, K, D]``; each kv head serves ``H / K`` query heads.
            v: ``[T, K, D]``.
            cache: this layer's.
            metadata: from ``prepare``.
            scale: what the scores are multiplied by.
            window: a token sees the last so many tokens, itself included; None: all before it.

        Returns:
            ``[T, H, D]`` in ``q``'s dtype.
        """
        ...


def choose_backend(
    name: str, config: ModelConfig, block_size: int, device: torch.device
) -> Attention:
    """The implementation of that name, ready for a model."""
    if backend_name(name) == "reference":
        return ReferenceAttention(block_size, device)
    windows = frozenset(layer.window for layer in config.layers)
    return TiledAttention(windows, block_size, config.num_kv_heads, config.head_dim, device)


def backend_name(name: str) -> str:
    """The name itself, or for ``auto`` that of the fastest implementation."""
    return "tiled" if name == "auto" else name
