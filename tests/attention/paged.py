"""Batches over scattered blocks, with caches whose unused memory is poisoned."""

from array import array
from dataclasses import dataclass
from random import Random

import torch

from minimal_vllm.attention.metadata import write_to_cache
from minimal_vllm.attention.reference import ReferenceAttention
from minimal_vllm.attention.tiled import TiledAttention
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.engine.batch import Batch, build_batch
from minimal_vllm.engine.request import Request
from minimal_vllm.engine.scheduler import Plan, ScheduledRequest
from minimal_vllm.sampling_params import SamplingParams

CPU = torch.device("cpu")
PARAMS = SamplingParams()


@dataclass
class Case:
    """What a step's attention gets, and the dense keys and values of each request."""

    batch: Batch
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    cache: LayerCache
    dense: list[tuple[torch.Tensor, torch.Tensor]]


def make_case(
    lengths,
    *,
    heads=(4, 2),
    head_dim=16,
    block_size=16,
    dtype=torch.float32,
    seed=0,
    poison=float("nan"),
):
    """Requests with ``lengths = [(tokens in the cache, new tokens), …]`` in shuffled blocks."""
    num_heads, num_kv_heads = heads
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    sizes = [-(-(cached + new) // block_size) for cached, new in lengths]
    free = Random(seed).sample(range(2 * sum(sizes) + 1), sum(sizes))
    shape = (2 * sum(sizes) + 1, num_kv_heads, block_size, head_dim)
    cache = LayerCache(torch.full(shape, poison).to(dtype), torch.full(shape, poison).to(dtype))
    plan, dense = Plan(), []
    for index, ((cached, new), size) in enumerate(zip(lengths, sizes, strict=True)):
        request = Request(str(index), array("i", bytes(4 * (cached + new))), 1, PARAMS, index)
        request.block_table.extend(free.pop() for _ in range(size))
        plan.scheduled.append(ScheduledRequest(request, cached, new, samples=True))
        dense.append(tuple(numbers(cached + new, num_kv_heads, head_dim) for _ in range(2)))
        for position in range(cached):
            block, offset = divmod(position, block_size)
            for layer, tokens in zip(cache, dense[-1], strict=True):
                layer[request.block_table[block], :, offset] = tokens[position]
    return Case(
        batch=build_batch(plan, block_size),
        q=numbers(sum(new for _, new in lengths), num_heads, head_dim),
        k=torch.cat([keys[cached:] for (keys, _), (cached, _) in zip(dense, lengths, strict=True)]),
        v=torch.cat([vals[cached:] for (_, vals), (cached, _) in zip(dense, lengths, strict=True)]),
        cache=cache,
        dense=dense,
    )


def run_reference(case, window=None):
    return run(ReferenceAttention(CPU), case, window)


def run_tiled(case, window=None):
    _, num_kv_heads, block_size, head_dim = case.cache.key.shape
    attention = TiledAttention(frozenset({window}), block_size, num_kv_heads, head_dim, CPU)
    return run(attention, case, window)


def run(attention, case, window, prepare=None):
    """The result of an attention; with ``prepare``, of what that makes of the batch instead."""
    cache = LayerCache(case.cache.key.clone(), case.cache.value.clone())
    metadata = (prepare or attention.prepare)(case.batch)
    write_to_cache(case.k, case.v, cache, metadata)
    return attention(case.q, cache, metadata, case.q.shape[-1] ** -0.5, window)
