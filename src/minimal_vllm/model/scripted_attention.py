"""Attention of a few tokens in all layers; see ``scripted_layers``.

The tokens are ordered by the length of their contexts and cut into groups, so that each group's
contexts can be padded to the longest and multiplied at once.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from minimal_vllm.attention.tiled_step import ContextGroup, TokenContexts


class Context(NamedTuple):
    """Rotations of the step's tokens, and the keys that they attend to."""

    turns: Tensor
    """``[T, D, D]``: rotation of each token's queries and key; see ``Rotation.matrices``. The
    tokens are ordered by their contexts; see ``TokenContexts``."""
    keys: TokenContexts


class Heads(NamedTuple):
    """A layer's attention heads, and the norm of queries and keys."""

    num_heads: int
    num_kv_heads: int
    scale: float
    norm: Tensor | None
    """``[H + K, D]``: weights times ``sqrt(D)``. None: queries and keys aren't normalized."""
    eps: Tensor | None


def normalize(x: Tensor, scaled_weight: Tensor, scaled_eps: Tensor) -> Tensor:
    """Normalize the last dimension of ``x``; see ``CpuRMSNorm``."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return (x / torch.hypot(length, scaled_eps)).mul_(scaled_weight)


def attend(qkv: Tensor, keys: Tensor, values: Tensor, context: Context, heads: Heads) -> Tensor:
    """Cache the tokens' keys and values, and return attention over their contexts.

    Args:
        qkv: ``[T, H + 2 K, D]``.
        keys: see ``compute_layer``.
        values: see ``compute_layer``.
        context: what the tokens attend to.
        heads: the layer's heads.

    Returns:
        ``[T, H * D]``.
    """
    num_heads, num_kv_heads, head_dim = heads.num_heads, heads.num_kv_heads, keys.shape[3]
    qk, v = torch.split(qkv, [num_heads + num_kv_heads, num_kv_heads], dim=1)
    norm, eps = heads.norm, heads.eps
    if norm is not None and eps is not None:
        qk = normalize(qk, norm, eps)
    q, k = torch.split(torch.bmm(qk, context.turns), [num_heads, num_kv_heads], dim=1)
    keys, values = keys.view(-1, head_dim), values.view(-1, head_dim)
    keys.index_copy_(0, context.keys.new_rows, k.reshape(-1, head_dim))
    values.index_copy_(0, context.keys.new_rows, v.reshape(-1, head_dim))
    queries = q.mul_(heads.scale).reshape(qkv.shape[0] * num_kv_heads, -1, head_dim)
    groups = context.keys.groups
    if len(groups) == 1:
        return attend_group(queries, keys, values, groups[0]).view(qkv.shape[0], -1)
    attended, first = [], 0
    for group in groups:
        end = first + group.num_tokens * num_kv_heads
        attended.append(attend_group(queries[first:end], keys, values, group))
        first = end
    return torch.cat(attended).view(qkv.shape[0], -1)


def attend_group(queries: Tensor, keys: Tensor, values: Tensor, group: ContextGroup) -> Tensor:
    """Return attention of ``t`` tokens over contexts of similar length.

    Args:
        queries: ``[t * K, H / K, D]``: scaled queries.
        keys: ``[B * K * S, D]``: the layer's cache.
        values: likewise.
        group: the contexts.

    Returns:
        ``[t * K, H / K, D]``.
    """
    k, v = group.scratch.unbind(0)
    torch.index_select(keys, 0, group.rows, out=k)
    torch.index_select(values, 0, group.rows, out=v)
    k, v = k.view(len(queries), -1, k.shape[1]), v.view(len(queries), -1, v.shape[1])
    scores = torch.bmm(queries, k.transpose(1, 2))
    bias = group.bias
    if bias is not None:
        scores.view(group.num_tokens, -1, scores.shape[1], scores.shape[2]).add_(bias)
    return torch.bmm(scores.softmax(-1), v)
