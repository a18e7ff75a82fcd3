"""Random attention inputs over scattered blocks, in which every unused slot is poisoned."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.batch import Batch, build_batch
from minimal_vllm.step.plan import Plan, ScheduledRequest
from minimal_vllm.step.request import Request


@dataclass
class PagedCase:
    """The attention inputs of one step, and the contiguous keys and values of each request."""

    batch: Batch
    q: Tensor
    k: Tensor
    v: Tensor
    cache: LayerCache
    dense: list[tuple[Tensor, Tensor]]
    """Keys and values of each request, ``[tokens, K, D]`` each, new tokens included."""


def make_case(
    lengths: Sequence[tuple[int, int]],
    *,
    heads: tuple[int, int] = (4, 2),
    head_dim: int = 16,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    poison: float = float("nan"),
) -> PagedCase:
    """Create random inputs for requests whose blocks are scattered over the cache.

    Args:
        lengths: number of cached and of new tokens, per request.
        heads: number of query heads and of kv heads.
        head_dim: size of a head.
        block_size: tokens per block.
        dtype: dtype of all tensors.
        seed: seed of the random numbers.
        poison: value of all slots that hold no token of a request.
    """
    num_heads, num_kv_heads = heads
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    sizes = [-(-(cached + new) // block_size) for cached, new in lengths]
    free = Random(seed).sample(range(2 * sum(sizes) + 1), sum(sizes))
    shape = (2 * sum(sizes) + 1, num_kv_heads, block_size, head_dim)
    cache = LayerCache(torch.full(shape, poison).to(dtype), torch.full(shape, poison).to(dtype))
    plan, dense = Plan(), []
    for index, ((cached, new), size) in enumerate(zip(lengths, sizes, strict=True)):
        tokens = array("i", bytes(4 * (cached + new)))
        request = Request(str(index), tokens, 1, SamplingParams(), index)
        request.block_table.extend(free.pop() for _ in range(size))
        plan.scheduled.append(ScheduledRequest(request, cached, new, num_logits=1))
        keys, values = (numbers(cached + new, num_kv_heads, head_dim) for _ in range(2))
        dense.append((keys, values))
        for position in range(cached):
            block, offset = divmod(position, block_size)
            cache.key[request.block_table[block], :, offset] = keys[position]
            cache.value[request.block_table[block], :, offset] = values[position]
    return PagedCase(
        batch=build_batch(plan, block_size),
        q=numbers(sum(new for _, new in lengths), num_heads, head_dim),
        k=torch.cat([keys[cached:] for (keys, _), (cached, _) in zip(dense, lengths, strict=True)]),
        v=torch.cat([vals[cached:] for (_, vals), (cached, _) in zip(dense, lengths, strict=True)]),
        cache=cache,
        dense=dense,
    )
