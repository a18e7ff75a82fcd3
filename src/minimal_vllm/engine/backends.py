"""Which implementation of attention, and which modules, a model runs on."""

import torch

from minimal_vllm.attention.interface import Attention
from minimal_vllm.attention.reference import ReferenceAttention
from minimal_vllm.attention.tiled import TiledAttention
from minimal_vllm.device.properties import num_sms
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.layers import PLAIN_MODULES, Modules
from minimal_vllm.plugin import Part, make_part, part_name


def backend_name(name: Part, device: torch.device) -> str:
    """Return ``name`` itself, or for ``auto`` the fastest implementation on the device."""
    if name != "auto":
        return part_name(name)
    return "triton" if device.type == "cuda" else "tiled"


def choose_modules(name: Part, device: torch.device) -> Modules:
    """Return the modules to build a decoder from.

    Args:
        name: as in ``EngineConfig.attention_backend``.
        device: where the model runs.

    Raises:
        ValueError: the Triton kernels are asked for on another device than a GPU.
    """
    if backend_name(name, device) != "triton":
        return PLAIN_MODULES
    _check_gpu(device)
    # Triton comes with PyTorch for CUDA, and only with that.
    from minimal_vllm.model.triton_modules import TRITON_MODULES

    return TRITON_MODULES


def choose_attention(
    name: Part,
    config: ModelConfig,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    max_num_seqs: int,
) -> Attention:
    """Make the attention of that name, or of the user's class, for a model.

    Args:
        name: as in ``EngineConfig.attention_backend``.
        config: config of the model.
        block_size: number of tokens per KV block.
        dtype: dtype of queries and caches.
        device: where queries and caches are.
        max_num_seqs: maximum number of requests in a step.

    Raises:
        ValueError: it can't run here, or the user's class does not fit.
    """
    windows = frozenset(layer.window for layer in config.layers)
    match backend_name(name, device):
        case "reference":
            return ReferenceAttention(device)
        case "tiled":
            return TiledAttention(windows, block_size, config.num_kv_heads, config.head_dim, device)
        case "triton":
            _check_gpu(device)
            from minimal_vllm.attention.triton_backend import TritonAttention

            return TritonAttention(
                windows=windows,
                num_heads=config.num_heads,
                num_kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                max_num_seqs=max_num_seqs,
                num_sms=num_sms(device),
                device=device,
                dtype=dtype,
            )
        case _:
            return make_part(name, Attention, device)


def _check_gpu(device: torch.device) -> None:
    if device.type != "cuda":
        raise ValueError(
            "attention_backend='triton' needs an NVIDIA GPU: use 'tiled', or leave it at 'auto'"
        )
