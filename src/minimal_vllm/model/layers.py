"""The parts of a decoder layer, and the classes that they are built from.

Parameters are not initialized here; the loader fills them. Modules call each other's ``forward``
directly: unlike ``nn.Module.__call__``, it is typed and does not look for hooks.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, cat, nn

from minimal_vllm.attention.interface import AttentionOptions, StepAttention
from minimal_vllm.attention.paged import write_to_cache
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.deferred import Operand, computed
from minimal_vllm.model.embedding import Embedding
from minimal_vllm.model.experts import DenseExperts, Experts
from minimal_vllm.model.layer_config import LayerConfig
from minimal_vllm.model.linear import GatedLinear, Linear, Projection, RowLinear, parameter
from minimal_vllm.model.norm import NoNorm, RMSNorm, Scaled
from minimal_vllm.model.rope import Rotation, rotate
from minimal_vllm.model.supported import Activation

Heads = tuple[Tensor, Tensor, Tensor]
"""Queries ``[T, H, D]``, keys ``[T, K, D]`` and values ``[T, K, D]``."""


class MLP(nn.Module):
    """Gated feed-forward network (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""

    def __init__(self, config: ModelConfig, modules: "Modules") -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        fused = "gate_up_proj" in config.fused
        self.gate_up_proj = modules.gated_linear(hidden, inner, bias, config.activation, fused)
        self.down_proj = modules.row_linear(inner, {"down_proj": hidden}, bias)

    def forward(self, x: Operand) -> Operand:
        """Return ``down(activation(gate(x)) * up(x))``; input and output are ``[T, hidden]``."""
        return self.down_proj.forward(self.gate_up_proj.forward(x))


class MoE(nn.Module):
    """Mixture of experts: a router chooses a few of many small MLPs for each token.

    Args:
        config: hyperparameters of a model that has experts.
        modules: classes to build the router and the experts from.
    """

    def __init__(self, config: ModelConfig, modules: "Modules") -> None:
        super().__init__()
        self.experts = modules.experts(config)
        count, biased = self.experts.config.count, self.experts.config.biased
        self.router = modules.linear(config.hidden_size, {"gate": count}, biased)

    def forward(self, x: Operand) -> Operand:
        """Return the weighted sum of each token's experts; input and output are ``[T, hidden]``."""
        return self.experts.forward(x, self.router)


def feed_forward(config: ModelConfig, layer: LayerConfig, modules: "Modules") -> MLP | MoE:
    """Make a layer's feed-forward network: an MLP, or a mixture of experts."""
    return MoE(config, modules) if layer.is_sparse else MLP(config, modules)


class Sinks(nn.Module):
    """A learned score per query head; see ``AttentionOptions.sinks``."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.weight = parameter(num_heads)

    def checkpoint_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the destination of the tensor that a checkpoint has for the sinks."""
        yield "sinks", self.weight


class SelfAttention(nn.Module):
    """Grouped-query attention: H query heads share K heads of keys and values.

    Source: Ainslie et al. 2023, https://arxiv.org/abs/2305.13245.
    """

    def __init__(self, config: ModelConfig, layer: LayerConfig, modules: "Modules") -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.head_dim
        self.scale, self.softcap = config.attention_scale, config.attention_softcap
        self.window = layer.window
        self.sinks = Sinks(self.num_heads) if config.attention_sinks else None
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        qkv = {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}
        if "qkv_proj" in config.fused:
            qkv = {"qkv_proj": sum(qkv.values())}
        self.qkv_proj = modules.linear(config.hidden_size, qkv, config.qkv_bias)
        self.o_proj = modules.row_linear(q_size, {"o_proj": config.hidden_size}, config.o_bias)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            is_wide = config.qk_norm == "all heads"
            q_norm_size, k_norm_size = (q_size, kv_size) if is_wide else [self.head_dim] * 2
            self.q_norm = make_norm(modules, "q_norm", q_norm_size, config, is_wide=is_wide)
            self.k_norm = make_norm(modules, "k_norm", k_norm_size, config, is_wide=is_wide)
        self.normalizes_whole = config.qk_norm == "all heads"

    @cached_property
    def options(self) -> AttentionOptions:
        """The layer's scale, window, softcap and sinks, read after the weights have memory."""
        sinks = self.sinks.weight if self.sinks else None
        return AttentionOptions(self.scale, self.window, self.softcap, sinks)

    def forward(
        self,
        x: Operand,
        rotation: Rotation | None,
        attend: StepAttention,
        cache: LayerCache,
        wanted: Tensor | None = None,
    ) -> Operand:
        """Cache the keys and values of ``x``, and attend over all keys and values cached so far.

        Args:
            x: ``[T, hidden]``.
            rotation: rotary angles of the tokens' positions, from ``Rotary.rotation``. None: the
                layer has no rotary embedding.
            attend: the step's attention.
            cache: the layer's keys and values.
            wanted: ``[N]`` int64: indices of the tokens to return. Default: all tokens.

        Returns:
            ``[N, hidden]``.
        """
        q, k, v = self.rotate_and_store(self.qkv_proj.forward(x), rotation, attend, cache)
        if rotation is not None and rotation.query_factor is not None:
            q = q * rotation.query_factor
        out = attend(q, k, v, cache, self.options)
        if wanted is not None:
            out = out[wanted]
        return self.o_proj.forward(out.flatten(1))

    def rotate_and_store(
        self, qkv: Tensor, rotation: Rotation | None, attend: StepAttention, cache: LayerCache
    ) -> Heads:
        """Normalize and rotate queries and keys, as configured, and cache keys and values.

        Args:
            qkv: ``[T, (H + 2 K) * D]``; may be overwritten.
            rotation: rotary angles of the tokens' positions, or None.
            attend: the step's attention, which knows the tokens' slots.
            cache: the layer's keys and values; written to.

        Returns:
            Queries, keys and values; keys and values as they were written to the cache.
        """
        self.normalize_whole(qkv)
        heads = qkv.view(len(qkv), -1, self.head_dim)
        qk, v = heads[:, : -self.num_kv_heads], heads[:, -self.num_kv_heads :]
        if self.q_norm and self.k_norm and not self.normalizes_whole:
            q, k = qk[:, : self.num_heads], qk[:, self.num_heads :]
            qk = cat((self.q_norm.normalize(q), self.k_norm.normalize(k)), dim=1)
        if rotation is not None:
            qk = rotate(qk, rotation)
        q, k = qk[:, : self.num_heads], qk[:, self.num_heads :]
        self.store(k, v, attend, cache)
        return q, k, v

    def store(self, k: Tensor, v: Tensor, attend: StepAttention, cache: LayerCache) -> None:
        """Write keys and values, each ``[T, K, D]``, to the tokens' slots."""
        write_to_cache(k, v, cache, attend.slots)

    def normalize_whole(self, qkv: Tensor) -> None:
        """Normalize queries and keys in place, if one norm covers all heads."""
        if not self.normalizes_whole or self.q_norm is None or self.k_norm is None:
            return
        q_size, kv_size = (len(norm.weight) for norm in (self.q_norm, self.k_norm))
        q, k = qkv[:, :q_size], qkv[:, q_size : q_size + kv_size]
        q.copy_(self.q_norm.normalize(q))
        k.copy_(self.k_norm.normalize(k))


class DecoderLayer(nn.Module):
    """Attention and MLP, each of which reads the residual stream and adds to it.

    ``config.norms`` says where the norms are: before a sub-layer, after it, or both. The result of
    a sub-layer is added to the stream by the norm before the next sub-layer, possibly in the next
    layer, so that one kernel can add and normalize in a single pass over the stream.
    """

    def __init__(self, config: ModelConfig, layer: LayerConfig, modules: "Modules") -> None:
        super().__init__()

        def norm(name: str | None) -> RMSNorm | NoNorm:
            return make_norm(modules, name, config.hidden_size, config) if name else NoNorm()

        def after(name: str | None) -> RMSNorm | NoNorm:
            scale = config.residual_scale
            return Scaled(scale) if scale != 1 else norm(name)

        self.complete = modules.complete
        self.before_attention = norm(config.norms.before_attention)
        self.self_attn = modules.attention(config, layer, modules)
        self.after_attention = after(config.norms.after_attention)
        self.before_mlp = norm(config.norms.before_mlp)
        self.mlp = modules.mlp(config, layer, modules)
        self.after_mlp = after(config.norms.after_mlp)

    def forward(
        self,
        x: Operand,
        residual: Operand | None,
        rotation: Rotation | None,
        attend: StepAttention,
        cache: LayerCache,
        wanted: Tensor | None = None,
    ) -> tuple[Operand, Operand]:
        """Compute the layer.

        Args:
            x: ``[T, hidden]``: output of the previous layer, not yet added to the stream.
            residual: ``[T, hidden]``: the residual stream; may be overwritten. None in the first
                layer.
            rotation: rotary angles of the tokens' positions, or None.
            attend: the step's attention.
            cache: the layer's keys and values.
            wanted: ``[N]`` int64: indices of the tokens to return; of the others, only keys and
                values are computed. Default: all tokens.

        Returns:
            The layer's output, not yet added to the stream, and the stream, each ``[N, hidden]``.
        """
        x, residual = self.before_attention.forward(x, residual)
        x = self.complete(self.self_attn.forward(x, rotation, attend, cache, wanted))
        if wanted is not None:
            residual = computed(residual)[wanted]
        x, residual = self.before_mlp.forward(self.after_attention.normalize(x), residual)
        x = self.complete(self.mlp.forward(x))
        return self.after_mlp.normalize(x), residual


def make_norm(
    modules: "Modules", name: str, size: int, config: ModelConfig, *, is_wide: bool = False
) -> RMSNorm:
    """Make a norm of vectors of length ``size`` with the model's epsilon and precision.

    Args:
        modules: classes to make it from.
        name: the norm's name in the checkpoint.
        size: length of the vectors.
        config: hyperparameters of the model.
        is_wide: whether it normalizes all heads of a token together.
    """
    make = modules.wide_norm or modules.norm if is_wide else modules.norm
    return make(name, size, config.rms_norm_eps, config.exact_norms)


def _keep(path: str, projection: Projection) -> Projection:  # noqa: ARG001
    return projection


def _whole(result: Operand) -> Operand:
    return result


@dataclass(frozen=True)
class Modules:
    """Factories for a decoder's modules. The defaults use PyTorch operations, on any device.

    Replace an entry to use another kind of projection, norm or attention layer. The network that is
    built from them stays the same.
    """

    linear: Callable[[int, dict[str, int], bool], Linear] = Linear
    """Makes a projection from input size, parts (see ``Projection``), and whether it has a bias."""
    row_linear: Callable[[int, dict[str, int], bool], RowLinear] = RowLinear
    """Makes the last projection of a sub-layer, from the same arguments as ``linear``."""
    gated_linear: Callable[[int, int, bool, Activation, bool], GatedLinear] = GatedLinear
    """Makes a gated projection from the arguments of ``GatedLinear``."""
    norm: Callable[[str, int, float, bool], RMSNorm] = RMSNorm
    """Makes a norm from the arguments of ``RMSNorm``."""
    wide_norm: Callable[[str, int, float, bool], RMSNorm] | None = None
    """Makes a norm over all heads of a token. Default: ``norm``."""
    embedding: Callable[[int, int, float], Embedding] = Embedding
    """Makes the table of token vectors from the arguments of ``Embedding``."""
    head: Callable[[int, dict[str, int], bool], Linear] | None = None
    """Makes the projection to the logits, from the same arguments as ``linear``. Default:
    ``linear``."""
    complete: Callable[[Operand], Operand] = _whole
    """Completes the result of a sub-layer, before it is normalized and added to the residual
    stream. Default: it is complete. Where several ranks compute the model, it adds their parts."""
    attention: "Callable[[ModelConfig, LayerConfig, Modules], SelfAttention]" = SelfAttention
    """Makes a layer's attention; its projections and norms come from the same ``Modules``."""
    mlp: "Callable[[ModelConfig, LayerConfig, Modules], MLP | MoE]" = feed_forward
    """Makes a layer's feed-forward network; its parts come from the same ``Modules``."""
    layers: Callable[[Iterable[DecoderLayer]], nn.ModuleList] | None = None
    """Makes the stack of layers. Default: ``layer_stack.Layers``."""
    experts: Callable[[ModelConfig], Experts] = DenseExperts
    """Makes the experts of a layer that has a mixture of them."""
    convert: Callable[[str, Projection], Projection] = _keep
    """Replaces a projection, given its path in the model. Default: keep it. The weights have no
    memory yet. Use it for a format that quantizes some projections, or an adapter of some layers.
    """


PLAIN_MODULES = Modules()
