"""Attention of twelve decoding requests in one layer: three ways, and the least possible time."""

import time
from array import array
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from minimal_vllm import SamplingParams
from minimal_vllm.attention.interface import Attention, AttentionOptions
from minimal_vllm.attention.reference import ReferenceAttention, gather_pages
from minimal_vllm.attention.tiled import TiledAttention
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.step.batch import Batch, build_batch
from minimal_vllm.step.plan import Plan, ScheduledRequest
from minimal_vllm.step.request import Request

LENGTHS = [1024, 700, 500, 300, 200, 150, 100, 90, 80, 60, 40, 30]
B, K, G, S, D = 256, 2, 3, 16, 64
OPTIONS = AttentionOptions(scale=D**-0.5)
CPU = torch.device("cpu")


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    batch, cache = make_batch(), LayerCache(*torch.randn(2, B, K, S, D))
    q, new = torch.randn(len(LENGTHS), K * G, D), torch.empty(0)
    ways: dict[str, Callable[[], Tensor]] = {
        "key by key": lambda: torch.stack(
            [
                attend_key_by_key(q[row], cache, batch.block_tables[row].tolist(), length)
                for row, length in enumerate(LENGTHS)
            ]
        )
    }
    backends: dict[str, Attention] = {
        "gather, then attend": ReferenceAttention(CPU),
        "tiled": TiledAttention(S, K, D, CPU),
    }
    for name, attention in backends.items():
        ways[name] = bind(attention, batch, q, new, cache)

    num_bytes = sum(LENGTHS) * 2 * K * D * 4
    seconds_to_read = num_bytes / read_rate()
    with FlopCounterMode(display=False) as counter:
        expected = ways["gather, then attend"]()
    assert counter.get_total_flops() == 4 * sum(LENGTHS) * K * G * D
    tables = zip(torch.from_numpy(batch.block_tables), LENGTHS, strict=True)
    pages = [gather_pages(layer, table, length) for table, length in tables for layer in cache]
    assert sum(page.nbytes for page in pages) == num_bytes
    print(f"{sum(LENGTHS)} tokens, {num_bytes / 2**20:.1f} MiB of keys and values\n")
    for name, way in ways.items():
        torch.testing.assert_close(way(), expected)
        print(f"{name:20} {1e3 * seconds_of(way):8.2f} ms")
    print(f"{'reading them once':20} {1e3 * seconds_to_read:8.2f} ms")


def attend_key_by_key(q: Tensor, cache: LayerCache, table: list[int], length: int) -> Tensor:
    """Attend from one request's new token to its tokens, one after another: [H, D] -> [H, D]."""
    q = q.view(K, G, D) * OPTIONS.scale
    peak = torch.full([K, G], -torch.inf)
    total, mean = torch.zeros(K, G), torch.zeros(K, G, D)
    for position in range(length):
        block, offset = table[position // S], position % S
        key, value = cache.key[block, :, offset], cache.value[block, :, offset]  # [K, D]
        score = (q * key[:, None]).sum(-1)
        new_peak = torch.maximum(peak, score)
        fade, weight = torch.exp(peak - new_peak), torch.exp(score - new_peak)
        total = total * fade + weight
        mean = mean * fade[..., None] + weight[..., None] * value[:, None]
        peak = new_peak
    return (mean / total[..., None]).view(K * G, D)


def bind(
    attention: Attention, batch: Batch, q: Tensor, new: Tensor, cache: LayerCache
) -> Callable[[], Tensor]:
    attend = attention.plan(batch)
    return lambda: attend(q, new, new, cache, OPTIONS)


def make_batch() -> Batch:
    """Return a batch of requests whose last token is new, in shuffled blocks."""
    plan, places = Plan(), iter(torch.randperm(B).tolist())
    for index, length in enumerate(LENGTHS):
        request = Request(str(index), array("i", [300] * length), length, SamplingParams(), index)
        request.block_table.extend(next(places) for _ in range(-(-length // S)))
        plan.scheduled.append(ScheduledRequest(request, length - 1, 1, num_logits=1))
    return build_batch(plan, S)


def read_rate() -> float:
    """Measure bytes per second in a product that uses each number once."""
    matrix, one = torch.randn(4096, 4096), torch.randn(4096)
    return matrix.nbytes / seconds_of(lambda: matrix @ one)


def seconds_of(work: Callable[[], object]) -> float:
    """Return the shortest of five runs."""
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


if __name__ == "__main__":
    main()
