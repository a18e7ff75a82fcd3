"""The parts of a decoder layer.

Parameters are declared, not initialised: the loader fills them. Submodules are named as in Hugging
Face checkpoints, which is how the loader finds them. They call each other's ``forward`` directly,
which, unlike ``nn.Module.__call__``, looks for no hooks and has types.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from minimal_vllm.model.config import LayerConfig, ModelConfig

if TYPE_CHECKING:
    from minimal_vllm.cache.kv_cache import LayerCache
    from minimal_vllm.model.ops import Rotation
    from minimal_vllm.model.step import Step


def parameter(*shape: int) -> nn.Parameter:
    """Uninitialised weights that are never trained."""
    return nn.Parameter(torch.empty(shape), requires_grad=False)


class Linear(nn.Module):
    """A matrix product that computes several of a checkpoint's projections at once.

    Args:
        in_size: length of the input.
        parts: name in the checkpoint -> length of the output, in the order of the output.
        bias: whether a bias is added.
    """

    def __init__(self, in_size: int, parts: dict[str, int], bias: bool) -> None:
        super().__init__()
        self.parts = parts
        out_size = sum(parts.values())
        self.weight = parameter(out_size, in_size)
        self.bias = parameter(out_size) if bias else None


class RMSNorm(nn.Module):
    """Root mean square normalisation (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = parameter(size)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the last dimension, inside in float32, rounding as transformers does."""
        return rms_norm(x, self.weight.shape, eps=self.eps) * self.weight


class MLP(nn.Module):
    """A gated feed-forward network, SwiGLU (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_up_proj = Linear(hidden, {"gate_proj": inner, "up_proj": inner}, bias)
        self.down_proj = Linear(inner, {"down_proj": hidden}, bias)


class SelfAttention(nn.Module):
    """Grouped-query attention: H query heads share K heads of keys and values."""

    def __init__(self, config: ModelConfig, layer: LayerConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        self.window, self.rope = layer.window, layer.rope
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        qkv = {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}
        self.qkv_proj = Linear(config.hidden_size, qkv, config.qkv_bias)
        self.o_proj = Linear(q_size, {"o_proj": config.hidden_size}, config.o_bias)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else None


class DecoderLayer(nn.Module):
    """Attention and MLP, each between the norm of the residual stream and its addition to it.

    A sub-layer's output is added by the norm that follows it, be it the next layer's: two passes
    over the residual stream which a kernel can make one.
    """

    def __init__(self, config: ModelConfig, layer: LayerConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self,
        residual: Tensor,
        x: Tensor | None,
        rotation: "Rotation",
        step: "Step",
        cache: "LayerCache",
        wanted: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute one layer.

        Args:
            residual: the residual stream, ``[T, hidden]``; not to be used any more.
            x: what the layer before left to be added to it (see ``linear_to_add``); None in the
                first layer.
            rotation: from ``step.ops.rotation``.
            step: what the tokens have in common in all layers.
            cache: this layer's keys and values.
            wanted: ``[N]`` int64: the tokens whose results are wanted; of the others only the keys
                and values are. None: all.

        Returns:
            The residual stream, ``[N, hidden]``, and what is to be added to it.
        """
        ops, attn, mlp = step.ops, self.self_attn, self.mlp
        residual, qkv = ops.add_norm_linear(residual, x, self.input_layernorm, attn.qkv_proj)
        q, k, v = ops.norm_rotate_store(qkv, attn, rotation, cache, step.metadata)
        out = step.attention(q, k, v, cache, step.metadata, attn.scale, attn.window)
        if wanted is not None:
            residual, out = residual[wanted], out[wanted]
        x = ops.linear_to_add(out.flatten(1), attn.o_proj)
        residual, x = ops.add_norm_gate(
            residual, x, self.post_attention_layernorm, mlp.gate_up_proj
        )
        return residual, ops.linear_to_add(x, mlp.down_proj)
