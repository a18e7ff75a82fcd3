"""The one interface of attention, and which implementation is used."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from minimal_vllm.attention.metadata import AttentionMetadata
from minimal_vllm.attention.reference import ReferenceAttention
from minimal_vllm.attention.tiled import TiledAttention
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.ops import Ops, PlainOps
from minimal_vllm.plugin import Part, make_part, part_name
from minimal_vllm.step.batch import Batch


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
        """Attend over the cache, causally.

        The keys and values of all of the step's tokens are in it already: a request may share
        blocks that another one of the same step fills.

        Args:
            q: ``[T, H, D]``; each kv head serves ``H / K`` query heads.
            k: ``[T, K, D]``: the step's keys once more, for kernels that want them in one piece.
            v: ``[T, K, D]``: the same for its values.
            cache: this layer's.
            metadata: from ``prepare``.
            scale: what the scores are multiplied by.
            window: a token sees the last so many tokens, itself included; None: all before it.

        Returns:
            ``[T, H, D]`` in ``q``'s dtype.
        """
        ...


@dataclass(frozen=True, slots=True)
class Backend:
    """How a model is computed: attention, and the operations between it and the products."""

    attention: Attention
    ops: Ops


def choose_backend(
    name: Part,
    config: ModelConfig,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    max_num_seqs: int,
) -> Backend:
    """The implementation of that name, or of the user's, ready for a model.

    Args:
        name: as in ``EngineConfig.attention_backend``.
        config: the model's.
        block_size: tokens per KV block.
        dtype: of queries and caches.
        device: where queries and caches are.
        max_num_seqs: at most so many requests are in a step.

    Raises:
        ValueError: it can't run here, or the user's class does not fit.
    """
    windows = frozenset(layer.window for layer in config.layers)
    match backend_name(name, device):
        case "reference":
            return Backend(ReferenceAttention(device), PlainOps())
        case "tiled":
            attention = TiledAttention(
                windows, block_size, config.num_kv_heads, config.head_dim, device
            )
            return Backend(attention, PlainOps())
        case "triton":
            return _triton_backend(windows, config, dtype, device, max_num_seqs)
        case _:
            return Backend(make_part(name, Attention, device), PlainOps())


def _triton_backend(
    windows: frozenset[int | None],
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    max_num_seqs: int,
) -> Backend:
    if device.type != "cuda":
        raise ValueError(
            "attention_backend='triton' needs an NVIDIA GPU: use 'tiled', or leave it at 'auto'"
        )
    # Triton comes with PyTorch for CUDA, and only with that.
    from minimal_vllm.attention.triton_backend import TritonAttention
    from minimal_vllm.model.triton_ops import TritonOps

    processors = torch.cuda.get_device_properties(device).multi_processor_count
    attention = TritonAttention(
        windows,
        (config.num_heads, config.num_kv_heads, config.head_dim),
        max_num_seqs,
        processors,
        device,
        dtype,
    )
    return Backend(attention, TritonOps())


def backend_name(name: Part, device: torch.device) -> str:
    """The name itself, or for ``auto`` that of the fastest implementation on the device."""
    if name != "auto":
        return part_name(name)
    return "triton" if device.type == "cuda" else "tiled"
