"""Each of our GPU kernels compared with its floor: its bytes at the rate of a copy, or its FLOPs.

python -m benchmarks.gpu_kernels [--heads 32] [--hidden 4096] [--inner 12288]

The default shapes are those of a Qwen3 0.6B layer in bfloat16. Several copies of weights and
caches, which together exceed the GPU's L2 cache, are used in turn, as in the layers of a model.
Times are medians over replays of a CUDA graph that contains the kernel many times, so they do not
include launches by the CPU.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from random import Random

import click
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.common import RESULTS, print_table, report
from benchmarks.kernel_timing import Bench, Shape, Timing, floor_gpu, floor_of
from minimal_vllm.attention.interface import AttentionOptions
from minimal_vllm.attention.kernels.decode import DecodeWork, decode_attention
from minimal_vllm.attention.kernels.prefill import prefill_attention
from minimal_vllm.attention.kernels.shared import shared_attention
from minimal_vllm.attention.triton_backend import TritonAttention
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.model.kernels.gate import act_and_mul
from minimal_vllm.model.kernels.gated_product import can_use_gated_product, gated_product
from minimal_vllm.model.kernels.heads import norm_rotate_store
from minimal_vllm.model.kernels.matvec import matvec
from minimal_vllm.model.kernels.norm import add_norm
from minimal_vllm.model.kernels.split import can_use_split, split_linear
from minimal_vllm.model.rope import Rotary
from minimal_vllm.model.rope_config import RopeConfig
from minimal_vllm.runner.guesses import count_together
from minimal_vllm.sampling import logprobs as plain_logprobs
from minimal_vllm.sampling.kernels.logprobs import find_logprobs
from minimal_vllm.sampling.logprobs import AskedLogprobs
from minimal_vllm.step.batch import Batch, enumerate_runs
from minimal_vllm.step.shared_prefix import SharedPrefix

Calls = dict[str, Callable[[], object]]
"""Functions that do the same work, by the name of their kernel."""

BLOCK_SIZE = 16


# ---- attention ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paged:
    """KV caches whose requests' blocks are scattered."""

    caches: list[LayerCache]
    tables: Tensor
    attention: TritonAttention


def lay_out(bench: Bench, lengths: Sequence[int], common: int = 0, max_guessed: int = 0) -> Paged:
    """Make caches for requests of these lengths, whose first ``common`` tokens are shared."""
    shape, random = bench.shape, Random(0)
    sizes = [-(-length // BLOCK_SIZE) for length in lengths]
    shared_blocks = common // BLOCK_SIZE
    num_blocks = sum(sizes) - shared_blocks * (len(lengths) - 1)
    blocks = random.sample(range(num_blocks), num_blocks)
    shared = [blocks.pop() for _ in range(shared_blocks)]
    tables = np.zeros((len(lengths), max(sizes)), dtype=np.int32)
    for row, size in zip(tables, sizes, strict=True):
        row[:size] = shared + [blocks.pop() for _ in range(size - shared_blocks)]
    of_cache = (num_blocks, shape.num_kv_heads, BLOCK_SIZE, shape.head_dim)
    caches = [
        LayerCache(bench.numbers(*of_cache), bench.numbers(*of_cache))
        for _ in bench.copies(num_blocks * BLOCK_SIZE * shape.kv_bytes)
    ]
    num_sms = 4
    if bench.device.type == "cuda":
        num_sms = torch.cuda.get_device_properties(bench.device).multi_processor_count
    attention = TritonAttention(
        windows=frozenset({None}),
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_num_seqs=len(lengths),
        num_sms=num_sms,
        device=bench.device,
        dtype=torch.bfloat16,
        max_guessed=max_guessed,
    )
    return Paged(caches, torch.from_numpy(tables).to(bench.device), attention)


def time_decode(bench: Bench, work: str, lengths: Sequence[int], common: int = 0) -> list[Timing]:
    """Time the decode kernel and, if tokens are shared, the kernel for shared tokens before it."""
    shape, options = bench.shape, AttentionOptions(bench.shape.head_dim**-0.5)
    paged = lay_out(bench, lengths, common)
    everyone = torch.arange(len(lengths), dtype=torch.int32, device=bench.device)
    seq_lens = torch.tensor(lengths, dtype=torch.int32, device=bench.device)
    q = bench.numbers(len(lengths), shape.num_heads, shape.head_dim)
    out, caches, timings, shared = torch.empty_like(q), cycle(paged.caches), [], None
    if common:
        shared = paged.attention.new_shared_work(len(lengths))
        prefix = SharedPrefix(list(range(len(lengths))), common)
        paged.attention.fill_shared_work(shared, [prefix], len(lengths))
        timings.append(
            Timing(
                "shared",
                f"{work}: the {common:,} shared tokens",
                bench.microseconds(
                    lambda: shared_attention(
                        q, next(caches), shared, everyone, everyone, paged.tables, options
                    )
                ),
                floor_of(
                    common * shape.kv_bytes,
                    4 * len(lengths) * common * shape.num_heads * shape.head_dim,
                ),
            )
        )
    plan = paged.attention.plan_decode(everyone, seq_lens, everyone, paged.tables, shared)[None]
    own_tokens = sum(lengths) - common * len(lengths)
    timings.append(
        Timing(
            "decode",
            work,
            bench.microseconds(lambda: decode_attention(q, next(caches), plan, options, out)),
            floor_of(own_tokens * shape.kv_bytes, 0),
        )
    )
    return timings


def time_guesses(bench: Bench, lengths: Sequence[int], num_places: int) -> Iterator[Timing]:
    """Time requests with guesses: the decode kernel, with places together and each alone.

    Args:
        bench: device, shape and size of the measurements.
        lengths: number of cached tokens of each request.
        num_places: number of places of each request, its last token and the guesses.
    """
    shape, options = bench.shape, AttentionOptions(bench.shape.head_dim**-0.5)
    num_rows = len(lengths) * num_places
    paged = lay_out(bench, [length + num_places for length in lengths], max_guessed=num_rows)
    q = bench.numbers(num_rows, shape.num_heads, shape.head_dim)
    out, caches = torch.empty_like(q), cycle(paged.caches)
    owner, offset = enumerate_runs(np.full(len(lengths), num_places))
    for most in {1, paged.attention.max_queries}:
        counts = count_together(np.full(len(lengths), num_places), most)
        ends = np.where(counts, np.array(lengths)[owner] + offset + 1, 0)
        token, seq_lens, rows, together = (
            torch.tensor(each, dtype=torch.int32, device=bench.device)
            for each in (np.arange(num_rows), ends, owner, counts)
        )
        plan = paged.attention.plan_decode(
            token, seq_lens, rows, paged.tables, None, together if most > 1 else None
        )[None]

        def call(plan: DecodeWork = plan) -> None:
            decode_attention(q, next(caches), plan, options, out)

        yield Timing(
            "decode",
            f"{len(lengths)} of {lengths[0]:,} cached, {num_places} new tokens, {most} together",
            bench.microseconds(call),
            floor_of(sum(lengths) * shape.kv_bytes, 0),
        )


def time_prefill(bench: Bench, work: str, requests: Sequence[tuple[int, int]]) -> Timing:
    """Time the prefill kernel with requests of ``(cached tokens, new tokens)``."""
    shape = bench.shape
    paged = lay_out(bench, [cached + new for cached, new in requests])
    batch = Batch(
        input_ids=np.zeros(0, dtype=np.int64),
        positions=np.concatenate([np.arange(cached, cached + new) for cached, new in requests]),
        slot_mapping=np.zeros(0, dtype=np.int64),
        query_starts=np.cumsum([0, *(new for _, new in requests)]),
        seq_lens=np.array([cached + new for cached, new in requests]),
        block_tables=paged.tables.cpu().numpy(),
        logit_indices=np.zeros(0, dtype=np.int64),
        sampling=[],
        wants_all_logits=False,
        rows=np.arange(len(requests)),
        pending=np.zeros(0, dtype=np.int64),
    )
    plan = paged.attention.plan_prefill(batch, np.arange(len(requests)), paged.tables, None)
    if plan is None:
        raise ValueError("nothing to compute")
    q = bench.numbers(sum(new for _, new in requests), shape.num_heads, shape.head_dim)
    out, caches = torch.empty_like(q), cycle(paged.caches)
    pairs = sum(new * cached + new * (new + 1) // 2 for cached, new in requests)
    options = AttentionOptions(shape.head_dim**-0.5)
    return Timing(
        "prefill",
        work,
        bench.microseconds(lambda: prefill_attention(q, next(caches), plan, options, out)),
        floor_of(
            sum(map(sum, requests)) * shape.kv_bytes, 4 * pairs * shape.num_heads * shape.head_dim
        ),
    )


# ---- between the products -----------------------------------------------------------------------


def time_between(bench: Bench, num_tokens: int) -> Iterator[Timing]:
    """Time the kernels of a layer between its matrix products."""
    shape, work = bench.shape, f"{num_tokens:,} tokens"
    residual, x = bench.numbers(num_tokens, shape.hidden), bench.numbers(num_tokens, shape.hidden)
    weight = bench.numbers(shape.hidden)
    yield Timing(
        "add_norm",
        work,
        bench.microseconds(lambda: add_norm(residual, x, weight, 1e-6)),
        floor_of(4 * residual.nbytes, 0),
    )
    gate_up = bench.numbers(num_tokens, 2 * shape.inner)
    yield Timing(
        "act_and_mul",
        work,
        bench.microseconds(lambda: act_and_mul(gate_up, "silu")),
        floor_of(1.5 * gate_up.nbytes, 0),
    )
    heads = shape.num_heads + 2 * shape.num_kv_heads
    qkv, norm = bench.numbers(num_tokens, heads * shape.head_dim), bench.numbers(shape.head_dim)
    rotary = Rotary(RopeConfig(1e6), shape.head_dim, num_tokens, bench.device)
    positions = torch.arange(num_tokens, device=bench.device)
    rotation = rotary.rotation(positions, torch.bfloat16)
    size = (-(-num_tokens // BLOCK_SIZE), shape.num_kv_heads, BLOCK_SIZE, shape.head_dim)
    cache = LayerCache(bench.numbers(*size), bench.numbers(*size))
    # Read all; write queries and keys in place, and keys and values to the cache.
    moved = heads + shape.num_heads + 3 * shape.num_kv_heads
    yield Timing(
        "norm_rotate_store",
        work,
        bench.microseconds(
            lambda: norm_rotate_store(qkv, (norm, norm), 1e-6, rotation, positions, cache)
        ),
        floor_of(moved * shape.head_dim * num_tokens * 2, 0),
    )


def time_products(bench: Bench) -> Iterator[Timing]:
    """Time the products with weights that have kernels of ours, beside the library's."""
    shape = bench.shape
    heads = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    sizes = {
        "qkv": (heads, shape.hidden),
        "o": (shape.hidden, shape.num_heads * shape.head_dim),
        "gate and up": (2 * shape.inner, shape.hidden),
        "down": (shape.hidden, shape.inner),
    }
    for name, (out_size, in_size) in sizes.items():
        num_bytes = 2 * out_size * in_size
        copies = [bench.numbers(out_size, in_size) for _ in bench.copies(num_bytes)]
        yield from time_matvec(bench, name, copies)
        for num_tokens in (16, 64, 256):
            x = bench.numbers(num_tokens, in_size)
            if can_use_split(x, copies[0]):
                yield from time_split(bench, f"{name}, {num_tokens} tokens", x, copies)


def time_matvec(bench: Bench, name: str, copies: list[Tensor]) -> Iterator[Timing]:
    """Time a product with one token."""
    x, weights = bench.numbers(1, copies[0].shape[1]), cycle(copies)
    calls: Calls = {
        "library": lambda: linear(x, next(weights)),
        "matvec": lambda: matvec(x, next(weights), None),
    }
    yield from time_calls(bench, f"{name}, one token", floor_of(copies[0].nbytes, 0), calls)


def time_split(bench: Bench, work: str, x: Tensor, copies: list[Tensor]) -> Iterator[Timing]:
    """Time a product with some tokens together with the following norm, which adds up its parts."""
    out_size, weights = len(copies[0]), cycle(copies)
    residual, norm = bench.numbers(len(x), out_size), bench.numbers(out_size)
    calls: Calls = {
        "library": lambda: add_norm(residual, linear(x, next(weights)), norm, 1e-6),
        "split_linear": lambda: add_norm(
            residual, split_linear(x, next(weights), None), norm, 1e-6
        ),
    }
    floor = floor_of(copies[0].nbytes, 2 * x.numel() * out_size)
    yield from time_calls(bench, f"{work} and the norm", floor, calls)


def time_gated_product(bench: Bench, num_tokens: int) -> Iterator[Timing]:
    """Time the product of a prompt's tokens with gate and up.

    There is one copy of the weights, because they are small compared with the tokens.
    """
    shape = bench.shape
    x = bench.numbers(num_tokens, shape.hidden)
    weight = bench.numbers(2 * shape.inner, shape.hidden)
    calls: Calls = {"library": lambda: act_and_mul(linear(x, weight), "silu")}
    if bench.device.type == "cpu" or can_use_gated_product(x, weight, None):
        calls["gated_product"] = lambda: gated_product(x, weight, "silu")
    floor = floor_of(weight.nbytes, 2 * x.numel() * len(weight))
    yield from time_calls(bench, f"gate and up, {num_tokens:,} tokens", floor, calls)


def time_logprobs(bench: Bench, num_rows: int, wanted: int) -> Iterator[Timing]:
    """Time the log-probabilities of a step's tokens, with a vocabulary of 151,936.

    Args:
        bench: device, shape and size of the measurements.
        num_rows: number of requests.
        wanted: number of top tokens of each.
    """
    logits = bench.numbers(num_rows, bench.scaled(151_936))
    tokens = torch.zeros(num_rows, dtype=torch.int64, device=bench.device)
    asked = AskedLogprobs.of([wanted] * num_rows, logits.shape[1], bench.device)
    if asked is None:
        raise ValueError("nothing to compute")
    calls: Calls = {
        "library": lambda: plain_logprobs.find_logprobs(logits, tokens, asked),
        "find_logprobs": lambda: find_logprobs(logits, tokens, asked),
    }
    work = f"{num_rows} tokens and {wanted} more each"
    yield from time_calls(bench, work, floor_of(logits.nbytes, 0), calls)


def time_calls(bench: Bench, work: str, floor: float, calls: Calls) -> Iterator[Timing]:
    """Time several kernels that do the same work."""
    for kernel, call in calls.items():
        yield Timing(kernel, work, bench.microseconds(call), floor)


# ---- the command --------------------------------------------------------------------------------


def all_timings(bench: Bench) -> Iterator[Timing]:
    """Time a few sizes of each kernel."""
    random = Random(0)

    def ragged(count: int, shortest: int, longest: int) -> list[int]:
        return [
            random.randint(bench.scaled(shortest), bench.scaled(longest))
            for _ in range(bench.scaled(count))
        ]

    yield from time_decode(bench, "one request of 500 tokens", [bench.scaled(500)])
    yield from time_decode(bench, "24 of 300 to 1,500", ragged(24, 300, 1500))
    yield from time_decode(bench, "64 of 500 to 2,000", ragged(64, 500, 2000))
    yield from time_decode(bench, "256 of 100 to 1,700", ragged(256, 100, 1700))
    yield from time_decode(bench, "32 of 8,200 to 8,400", ragged(32, 8200, 8400))
    yield from time_guesses(bench, [bench.scaled(2000)], 5)
    yield from time_guesses(bench, [bench.scaled(1000)] * 16, 5)
    common = max(BLOCK_SIZE, bench.scaled(2048) // BLOCK_SIZE * BLOCK_SIZE)
    own = [common + length for length in ragged(256, 64, 128)]
    yield from time_decode(bench, "256 of 64 to 128 after a shared prefix", own, common)
    fresh = [(0, length) for length in ragged(30, 100, 1000)]
    yield time_prefill(bench, "30 prompts of 100 to 1,000", fresh)
    cached = [(bench.scaled(2048), bench.scaled(64))] * bench.scaled(64)
    yield time_prefill(bench, "64 times 64 tokens after 2,048 cached", cached)
    yield time_prefill(bench, "4,096 tokens after 4,096 cached", [(bench.scaled(4096),) * 2])
    last = [(bench.scaled(8160), bench.scaled(30))]
    yield time_prefill(bench, "30 tokens after 8,160 cached", last)
    for num_tokens in (64, 256, 8192):
        yield from time_between(bench, bench.scaled(num_tokens))
    yield from time_products(bench)
    yield from time_gated_product(bench, bench.scaled(16384))
    for num_rows, wanted in ((1, 5), (256, 0), (256, 5), (256, 20)):
        yield from time_logprobs(bench, bench.scaled(num_rows), wanted)


@click.command()
@click.option("--heads", default=16, show_default=True)
@click.option("--kv-heads", default=8, show_default=True)
@click.option("--head-dim", default=128, show_default=True)
@click.option("--hidden", default=1024, show_default=True)
@click.option("--inner", default=3072, show_default=True)
@click.option(
    "--folder", type=click.Path(path_type=Path), default=RESULTS, help="Folder for the results."
)
def main(heads: int, kv_heads: int, head_dim: int, hidden: int, inner: int, folder: Path) -> None:
    """Time all kernels with one shape."""
    shape = Shape(heads, kv_heads, head_dim, hidden, inner)
    timings = list(all_timings(Bench(shape, torch.device("cuda"), scale=1)))
    print_table(
        f"Kernels, with the floors of an {floor_gpu().upper()}",
        ["kernel", "work", "µs", "floor", "floor / µs"],
        [
            [
                timing.kernel,
                timing.work,
                f"{timing.microseconds:.1f}",
                f"{timing.floor:.1f}",
                f"{timing.floor / timing.microseconds:.2f}",
            ]
            for timing in timings
        ],
    )
    results = {"shape": asdict(shape), "timings": [asdict(timing) for timing in timings]}
    report("gpu_kernels", results, folder)


if __name__ == "__main__":
    main()
