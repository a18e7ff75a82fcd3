"""A whole decoder layer for a step of one token, in one function that TorchScript runs.

A layer of a small model takes some 60 operations, most of which compute for less than a
microsecond. Called from Python, each takes two or three. So for a single request, whose steps are
the shortest, ``decode_layer`` computes what ``DecoderLayer`` computes with packed projections and
tiled attention. All other steps, and layers that it doesn't know, are left to these.
"""

import math
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from minimal_vllm.attention.interface import StepAttention
from minimal_vllm.attention.tiled_step import TiledStep
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.model.cpu_modules import CpuRMSNorm, TiledSelfAttention
from minimal_vllm.model.deferred import Operand, computed
from minimal_vllm.model.layers import MLP, PLAIN_MODULES, DecoderLayer, SelfAttention
from minimal_vllm.model.linear import Projection
from minimal_vllm.model.norm import NoNorm
from minimal_vllm.model.packed_linear import PACKED_MODULES, PackedProjection, multiply_packed
from minimal_vllm.model.quantization.int8 import (
    DIGITS,
    Digits,
    PackedInt8Weight,
    multiply_digits_of_one,
    products_of_one,
)
from minimal_vllm.model.quantization.weight import (
    QuantizedGatedLinear,
    QuantizedLinear,
    QuantizedRowLinear,
)
from minimal_vllm.model.rope import Rotation
from minimal_vllm.model.scripted import PackedMatrix, scripted

PACKED = (PACKED_MODULES.linear, PACKED_MODULES.row_linear, PACKED_MODULES.gated_linear)
QUANTIZED = (QuantizedLinear, QuantizedRowLinear, QuantizedGatedLinear)


class Context(NamedTuple):
    """Rotation of the step's token, and the rows of the cache that its attention uses."""

    turn: Tensor
    """``[D, D]``: rotation of queries and keys; see ``Rotation.matrix``."""
    new_rows: Tensor
    """``[K]`` int64: rows of the token's keys in the cache; see ``TiledStep.cache_rows``."""
    rows: Tensor
    """``[K * n]`` int64: rows of all keys that it attends to; see ``TiledStep.context_rows``."""


class Heads(NamedTuple):
    """A layer's attention heads, and the norm of queries and keys."""

    num_heads: int
    num_kv_heads: int
    scale: float
    norm: Tensor | None
    """``[H + K, D]``: weights times ``sqrt(D)``. None: queries and keys aren't normalized."""
    eps: Tensor | None


class Weights(NamedTuple):
    """A layer's weights. Those of norms are times ``sqrt(hidden)``; see ``CpuRMSNorm``."""

    before_attention: Tensor
    before_mlp: Tensor
    eps: Tensor
    qkv_proj: PackedMatrix
    o_proj: PackedMatrix
    gate_up_proj: PackedMatrix
    down_proj: PackedMatrix
    is_int8: bool
    """Whether the matrices are 8-bit integers, not in half precision."""
    is_gelu: bool
    """Whether the gate's activation is GELU, not SiLU."""
    digits: Digits


def decode_layer(
    x: Tensor,
    residual: Tensor | None,
    keys: Tensor,
    values: Tensor,
    context: Context,
    heads: Heads,
    weights: Weights,
) -> tuple[Tensor, Tensor]:
    """Compute a layer for one token; see ``DecoderLayer.forward``.

    Args:
        x: ``[1, hidden]`` float32.
        residual: ``[1, hidden]``; overwritten. None in the first layer: ``x`` is overwritten.
        keys: ``[B * K * S, D]`` float32: the layer's cache; written to.
        values: likewise.
        context: what the token attends to.
        heads: the layer's heads.
        weights: the layer's weights.

    Returns:
        The layer's output, not yet added to the stream, and the stream, each ``[1, hidden]``.
    """
    residual = x if residual is None else residual.add_(x)
    x = normalize(residual, weights.before_attention, weights.eps)
    qkv = multiply(x, weights.qkv_proj, weights)
    x = attend(qkv.view(-1, keys.shape[1]), keys, values, context, heads)
    residual = add_product(residual, x.view(1, -1), weights.o_proj, weights)
    x = normalize(residual, weights.before_mlp, weights.eps)
    gate, up = multiply(x, weights.gate_up_proj, weights).chunk(2, dim=1)
    gate = gelu(gate, approximate="tanh") if weights.is_gelu else silu(gate)
    return multiply(gate.mul_(up), weights.down_proj, weights), residual


def normalize(x: Tensor, scaled_weight: Tensor, scaled_eps: Tensor) -> Tensor:
    """Normalize the last dimension of ``x``; see ``CpuRMSNorm``."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return (x / torch.hypot(length, scaled_eps)).mul_(scaled_weight)


def multiply(x: Tensor, matrix: PackedMatrix, weights: Weights) -> Tensor:
    """Return ``x @ matrix.T``, ``[1, out]``."""
    if weights.is_int8:
        return multiply_digits_of_one(x, matrix, weights.digits)
    return multiply_packed(x, matrix)


def add_product(residual: Tensor, x: Tensor, matrix: PackedMatrix, weights: Weights) -> Tensor:
    """Add ``x @ matrix.T`` to the residual stream, in place."""
    if weights.is_int8:
        products, values = products_of_one(x, matrix, weights.digits)
        return residual.addmm_(values, products)
    return residual.add_(multiply_packed(x, matrix))


def attend(qkv: Tensor, keys: Tensor, values: Tensor, context: Context, heads: Heads) -> Tensor:
    """Cache the token's key and value, and return its attention over the context, ``[H, D]``.

    Args:
        qkv: ``[H + 2 K, D]``.
        keys: see ``decode_layer``.
        values: see ``decode_layer``.
        context: what the token attends to.
        heads: the layer's heads.
    """
    num_heads, num_kv_heads, head_dim = heads.num_heads, heads.num_kv_heads, keys.shape[1]
    qk, v = torch.split(qkv, [num_heads + num_kv_heads, num_kv_heads])
    norm, eps = heads.norm, heads.eps
    if norm is not None and eps is not None:
        qk = normalize(qk, norm, eps)
    q, k = torch.split(torch.mm(qk, context.turn), [num_heads, num_kv_heads])
    keys.index_copy_(0, context.new_rows, k)
    values.index_copy_(0, context.new_rows, v)
    k = keys.index_select(0, context.rows).view(num_kv_heads, -1, head_dim)
    v = values.index_select(0, context.rows).view(num_kv_heads, -1, head_dim)
    q = q.view(num_kv_heads, -1, head_dim)  # a row for each query head that shares the key's head
    scores = torch.baddbmm(q[:, :, :1], q, k.transpose(1, 2), beta=0.0, alpha=heads.scale)
    return torch.bmm(scores.softmax(-1), v)


class ScriptedLayer(DecoderLayer):
    """Decoder layer that computes a step of one token in one function, if it can."""

    def forward(
        self,
        x: Operand,
        residual: Operand | None,
        rotation: Rotation | None,
        attend: StepAttention,
        cache: LayerCache,
        wanted: Tensor | None = None,
    ) -> tuple[Operand, Operand]:
        """Compute the layer; see ``DecoderLayer.forward``."""
        x = computed(x)
        # Products that are large enough for several threads outweigh their calls.
        is_short = len(x) == 1 and torch.get_num_threads() == 1
        if is_short and x.dtype == torch.float32 and (wanted is None or len(wanted)):
            context = context_of(rotation, attend, self.self_attn)
            if context and self._heads and self._weights and cache.key.dtype == torch.float32:
                keys, values = (each.view(-1, self.self_attn.head_dim) for each in cache)
                stream = None if residual is None else computed(residual)
                return scripted(decode_layer)(
                    x, stream, keys, values, context, self._heads, self._weights
                )
        return super().forward(x, residual, rotation, attend, cache, wanted)

    @cached_property
    def _heads(self) -> Heads | None:
        """The layer's heads; None if the function doesn't know such attention."""
        own = self.self_attn
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

    @cached_property
    def _weights(self) -> Weights | None:
        """The layer's weights; None if the function doesn't know such weights."""
        first, second = self.before_attention, self.before_mlp
        if not (type(first) is CpuRMSNorm and type(second) is CpuRMSNorm):
            return None
        if not all(type(norm) is NoNorm for norm in (self.after_attention, self.after_mlp)):
            return None
        if type(self.mlp) is not MLP or self.complete is not PLAIN_MODULES.complete:
            return None
        gated = self.mlp.gate_up_proj
        projections = (self.self_attn.qkv_proj, self.self_attn.o_proj, gated, self.mlp.down_proj)
        qkv, o, gate_up, down = map(packed_matrix, projections)
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


def packed_matrix(projection: Projection) -> torch.ScriptObject | None:
    """Return a projection's packed matrix; None if the projection is of another kind."""
    if type(projection) in PACKED and isinstance(projection, PackedProjection):
        return projection.packed
    if type(projection) in QUANTIZED and projection.bias is None:
        weight = projection.quantized
        if isinstance(weight, PackedInt8Weight) and hasattr(weight, "packed"):
            return weight.packed
    return None


def context_of(
    rotation: Rotation | None, attend: StepAttention, attention: SelfAttention
) -> Context | None:
    """Return what a layer's function needs of the step; None if it doesn't know such a step."""
    if rotation is None or rotation.query_factor is not None or not isinstance(attend, TiledStep):
        return None
    rows = attend.context_rows[attention.window]
    if rows is None or len(rotation.matrix) != attention.head_dim:
        return None
    return Context(rotation.matrix, attend.cache_rows, rows)
