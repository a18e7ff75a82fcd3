"""All decoder layers for a step of few tokens, in one function that TorchScript runs.

A layer of a small model takes some 60 operations, most of which compute for less than a
microsecond. Called from Python, each takes two or three. So for a few tokens, whose steps are the
shortest, ``compute_layers`` computes what ``Layers`` computes with packed projections and tiled
attention. All other steps, and models with layers that it doesn't know, are left to these.
"""

import math
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from minimal_vllm.attention.interface import StepAttention
from minimal_vllm.attention.tiled_step import TiledStep
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.model.cpu_modules import CpuRMSNorm, TiledSelfAttention
from minimal_vllm.model.deferred import Operand, computed
from minimal_vllm.model.layer_stack import Layers
from minimal_vllm.model.layers import MLP, PLAIN_MODULES, DecoderLayer
from minimal_vllm.model.linear import Projection
from minimal_vllm.model.norm import NoNorm
from minimal_vllm.model.packed_linear import PACKED_MODULES, PackedProjection, multiply_packed
from minimal_vllm.model.quantization import int8_amx
from minimal_vllm.model.quantization.int8 import (
    DIGITS,
    Digits,
    PackedInt8Weight,
    multiply_digits,
    multiply_digits_of_one,
    products_of_one,
)
from minimal_vllm.model.quantization.int8_amx import AmxInt8Weight, Tiles, multiply_tiles
from minimal_vllm.model.quantization.weight import (
    QuantizedGatedLinear,
    QuantizedLinear,
    QuantizedRowLinear,
)
from minimal_vllm.model.rope import Rotation
from minimal_vllm.model.scripted import PackedMatrix, scripted_module
from minimal_vllm.model.scripted_attention import Context, Heads, attend, normalize

FEW_TOKENS = 64
"""Maximum number of tokens that are computed in one function."""
PACKED = (PACKED_MODULES.linear, PACKED_MODULES.row_linear, PACKED_MODULES.gated_linear)
QUANTIZED = (QuantizedLinear, QuantizedRowLinear, QuantizedGatedLinear)


class Matrix(NamedTuple):
    """A projection's matrix."""

    packed: PackedMatrix
    tiles: Tiles | None
    """Layout for AMX, and for more tokens than ``int8_amx.FEW_TOKENS``. None: there is no AMX."""


class Weights(NamedTuple):
    """A layer's weights. Those of norms are times ``sqrt(hidden)``; see ``CpuRMSNorm``."""

    before_attention: Tensor
    before_mlp: Tensor
    eps: Tensor
    qkv_proj: Matrix
    o_proj: Matrix
    gate_up_proj: Matrix
    down_proj: Matrix
    is_int8: bool
    """Whether the matrices are 8-bit integers, not in half precision."""
    is_gelu: bool
    """Whether the gate's activation is GELU, not SiLU."""
    digits: Digits


class Layer(NamedTuple):
    """Numbers of a decoder layer."""

    heads: Heads
    weights: Weights


def compute_layers(
    x: Tensor,
    contexts: list[Context],
    context_of_layer: list[int],
    keys: list[Tensor],
    values: list[Tensor],
    layers: list[Layer],
) -> Tensor:
    """Compute all layers for a few tokens; see ``Layers.forward``.

    Args:
        x: ``[T, hidden]`` float32: embedded tokens.
        contexts: what the tokens attend to.
        context_of_layer: index of each layer's context.
        keys: ``[B, K, S, D]`` float32: each layer's cache; written to.
        values: likewise.
        layers: the layers.

    Returns:
        The residual stream, ``[T, hidden]``.
    """
    order = contexts[0].keys.order
    stream = x.index_select(0, order)
    for i in range(len(layers)):
        compute_layer(stream, contexts[context_of_layer[i]], keys[i], values[i], layers[i])
    return torch.empty_like(stream).index_copy_(0, order, stream)


def compute_layer(
    stream: Tensor, context: Context, keys: Tensor, values: Tensor, layer: Layer
) -> None:
    """Add a layer's results for a few tokens to the residual stream; see ``DecoderLayer.forward``.

    Args:
        stream: ``[T, hidden]`` float32; updated.
        context: what the tokens attend to.
        keys: ``[B, K, S, D]`` float32: the layer's cache; written to.
        values: likewise.
        layer: the layer.
    """
    heads, weights = layer.heads, layer.weights
    x = normalize(stream, weights.before_attention, weights.eps)
    qkv = multiply(x, weights.qkv_proj, weights).view(x.shape[0], -1, keys.shape[3])
    add_product(stream, attend(qkv, keys, values, context, heads), weights.o_proj, weights)
    x = normalize(stream, weights.before_mlp, weights.eps)
    gate, up = multiply(x, weights.gate_up_proj, weights).chunk(2, dim=1)
    gate = gelu(gate, approximate="tanh") if weights.is_gelu else silu(gate)
    add_product(stream, gate.mul_(up), weights.down_proj, weights)


def multiply(
    x: Tensor, matrix: Matrix, weights: Weights, few_tokens: int = int8_amx.FEW_TOKENS
) -> Tensor:
    """Return ``x @ matrix.T``, ``[T, out]``."""
    if not weights.is_int8:
        return multiply_packed(x, matrix.packed)
    if x.shape[0] == 1:
        return multiply_digits_of_one(x, matrix.packed, weights.digits)
    tiles = matrix.tiles
    if tiles is not None and x.shape[0] > few_tokens:
        return multiply_tiles(x, tiles, weights.digits)
    return multiply_digits(x, matrix.packed, weights.digits)


def add_product(stream: Tensor, x: Tensor, matrix: Matrix, weights: Weights) -> None:
    """Add ``x @ matrix.T`` to the residual stream, in place."""
    if weights.is_int8 and x.shape[0] == 1:
        products, values = products_of_one(x, matrix.packed, weights.digits)
        stream.addmm_(values, products)
    else:
        stream.add_(multiply(x, matrix, weights))


class Known(nn.Module):
    """Layers that ``compute_layers`` knows.

    Args:
        layers: the layers' numbers.
    """

    layers: list[Layer]

    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.layers = layers

    def forward(
        self,
        x: Tensor,
        contexts: list[Context],
        context_of_layer: list[int],
        keys: list[Tensor],
        values: list[Tensor],
    ) -> Tensor:
        """Compute the layers; see ``compute_layers``."""
        return compute_layers(x, contexts, context_of_layer, keys, values, self.layers)


class ScriptedLayers(Layers):
    """Stack of layers that computes a step of few tokens in one function, if it can."""

    def forward(
        self,
        x: Operand,
        rotations: Sequence[Rotation | None],
        attend: Sequence[StepAttention],
        caches: Sequence[LayerCache],
        wanted: Tensor | None = None,
        kept: Collection[int] = (),
    ) -> tuple[Operand, Operand | None, dict[int, Tensor]]:
        """Compute all layers; see ``Layers.forward``."""
        x = computed(x)
        # Products that are large enough for several threads outweigh their calls.
        is_short = len(x) <= FEW_TOKENS and torch.get_num_threads() == 1
        if is_short and not kept and x.dtype == torch.float32 and self._numbers:
            contexts, context_of_layer = self._contexts(rotations, attend)
            if contexts and caches[0].key.dtype == torch.float32:
                keys, values = ([each[i] for each in caches] for i in range(2))
                x = self._compiled.forward(x, contexts, context_of_layer, keys, values)
                if wanted is not None and len(wanted) < len(x):
                    x = x[wanted]
                return x, None, {}
        return super().forward(x, rotations, attend, caches, wanted, kept)

    def _contexts(
        self, rotations: Sequence[Rotation | None], attend: Sequence[StepAttention]
    ) -> tuple[list[Context], list[int]]:
        """Return what the tokens attend to, and the index of each layer's context.

        Layers with the same rotation, attention and window share a context. There are no contexts
        if a layer's isn't known.
        """
        indices: dict[tuple[int, int, int | None], int] = {}
        contexts: list[Context] = []
        context_of_layer = []
        for rotation, step, (window, head_dim) in zip(rotations, attend, self._sizes, strict=True):
            key = id(rotation), id(step), window
            if key not in indices:
                context = context_of(rotation, step, window, head_dim)
                if context is None:
                    return [], []
                indices[key] = len(contexts)
                contexts.append(context)
            context_of_layer.append(indices[key])
        return contexts, context_of_layer

    @cached_property
    def _sizes(self) -> list[tuple[int | None, int]]:
        """Each layer's window, and the length of its heads."""
        return [(layer.self_attn.window, layer.self_attn.head_dim) for layer in self]

    @cached_property
    def _numbers(self) -> list[Layer]:
        """The layers' numbers; empty if the function doesn't know one of the layers."""
        numbers = []
        for layer in self:
            heads, weights = heads_of(layer), weights_of(layer)
            if heads is None or weights is None:
                return []
            numbers.append(Layer(heads, weights))
        return numbers

    @cached_property
    def _compiled(self) -> Known:
        """The layers for TorchScript, which takes a second to compile them."""
        return scripted_module(Known(self._numbers))


def heads_of(layer: DecoderLayer) -> Heads | None:
    """Return a layer's heads; None if the function doesn't know such attention."""
    own = layer.self_attn
    if type(own) is not TiledSelfAttention:
        return None
    if own.softcap is not None or own.sinks or own.normalizes_whole:
        return None
    if own.q_norm is None or own.k_norm is None:
        return Heads(own.num_heads, own.num_kv_heads, own.scale, None, None)
    if type(own.q_norm) is not CpuRMSNorm or own.q_norm.weight.dtype != torch.float32:
        return None
    weights = [own.q_norm.weight.expand(own.num_heads, -1)]
    weights.append(own.k_norm.weight.expand(own.num_kv_heads, -1))
    norm = torch.cat(weights) * math.sqrt(own.head_dim)
    return Heads(own.num_heads, own.num_kv_heads, own.scale, norm, own.q_norm.scaled_eps)


def weights_of(layer: DecoderLayer) -> Weights | None:
    """Return a layer's weights; None if the function doesn't know such weights."""
    first, second = layer.before_attention, layer.before_mlp
    if not (type(first) is CpuRMSNorm and type(second) is CpuRMSNorm):
        return None
    if not all(type(norm) is NoNorm for norm in (layer.after_attention, layer.after_mlp)):
        return None
    if type(layer.mlp) is not MLP or layer.complete is not PLAIN_MODULES.complete:
        return None
    attention, gated = layer.self_attn, layer.mlp.gate_up_proj
    projections = (attention.qkv_proj, attention.o_proj, gated, layer.mlp.down_proj)
    qkv, o, gate_up, down = map(matrix_of, projections)
    if qkv is None or o is None or gate_up is None or down is None:
        return None
    is_int8 = isinstance(gated, QUANTIZED)
    if any(isinstance(each, QUANTIZED) != is_int8 for each in projections):
        return None
    return Weights(
        first.scaled_weight,
        second.scaled_weight,
        first.scaled_eps,
        qkv,
        o,
        gate_up,
        down,
        is_int8,
        gated.activation == "gelu_tanh",
        DIGITS,
    )


def matrix_of(projection: Projection) -> Matrix | None:
    """Return a projection's matrix; None if the function doesn't know such projections."""
    if type(projection) in PACKED and isinstance(projection, PackedProjection):
        return None if projection.packed is None else Matrix(projection.packed, None)
    if type(projection) in QUANTIZED and projection.bias is None:
        weight = projection.quantized
        if isinstance(weight, PackedInt8Weight) and hasattr(weight, "packed"):
            tiles = weight.tiles if isinstance(weight, AmxInt8Weight) else None
            return Matrix(weight.packed, tiles)
    return None


def context_of(
    rotation: Rotation | None, attend: StepAttention, window: int | None, head_dim: int
) -> Context | None:
    """Return what a layer's tokens attend to; None if the function doesn't know such a step."""
    if rotation is None or rotation.query_factor is not None or not isinstance(attend, TiledStep):
        return None
    contexts = attend.contexts[window]
    if contexts is None or rotation.table.shape[1] != head_dim:
        return None
    return Context(rotation.matrices.index_select(0, contexts.order), contexts)
