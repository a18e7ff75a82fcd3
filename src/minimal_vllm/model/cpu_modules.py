"""A decoder's modules on a CPU: fewer calls for the same numbers.

In a step with few tokens, a small operation takes a few microseconds whatever it computes: for the
call from Python, for the choice of a kernel, and for what the weights have pushed out of the caches
since the last layer. So each class here computes what its base class computes, in fewer operations.
"""

import math
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor
from torch.linalg import vector_norm

from minimal_vllm.attention.interface import StepAttention
from minimal_vllm.attention.paged import as_cached
from minimal_vllm.attention.tiled_step import TiledStep
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.model.deferred import Operand, computed
from minimal_vllm.model.layers import Modules, SelfAttention
from minimal_vllm.model.norm import RMSNorm


class CpuRMSNorm(RMSNorm):
    """Norm of float32 vectors, by their Euclidean lengths.

    ``x / sqrt(mean(x**2) + eps)`` is ``x * sqrt(n) / hypot(|x|, sqrt(n * eps))``.
    """

    @cached_property
    def scaled_weight(self) -> Tensor:
        """The weight times ``sqrt(n)``, computed once the weight is filled."""
        return self.weight * math.sqrt(len(self.weight))

    @cached_property
    def scaled_eps(self) -> Tensor:
        """``sqrt(n * eps)``."""
        return torch.tensor(math.sqrt(len(self.weight) * self.eps))

    def normalize(self, x: Operand) -> Tensor:
        """Normalize the last dimension of ``x``; see ``RMSNorm.normalize``."""
        x = computed(x)
        if x.dtype != torch.float32:
            return super().normalize(x)
        length: Tensor = torch.hypot(vector_norm(x, dim=-1, keepdim=True), self.scaled_eps)
        return (x / length).mul_(self.scaled_weight)


class TiledSelfAttention(SelfAttention):
    """Attention that writes keys and values to rows of the cache that are computed once a step."""

    def store(self, k: Tensor, v: Tensor, attend: StepAttention, cache: LayerCache) -> None:
        """Write new keys and values to the cache; see ``SelfAttention.store``."""
        copies_rows = cache.key.dtype.itemsize > 1  # PyTorch copies no rows of FP8
        if not (copies_rows and isinstance(attend, TiledStep)):
            super().store(k, v, attend, cache)
            return
        for numbers, memory in ((k, cache.key), (v, cache.value)):
            rows = as_cached(numbers, memory.dtype).reshape(-1, self.head_dim)
            memory.view(-1, self.head_dim).index_copy_(0, attend.cache_rows, rows)


def with_fewer_calls(modules: Modules) -> Modules:
    """Return modules that compute the same for tiled attention on a CPU, in fewer operations."""
    return replace(modules, norm=CpuRMSNorm, attention=TiledSelfAttention)
