"""Paged attention: the same result from scattered blocks as from contiguous memory.

Attention needs the keys and values of all tokens so far, in order. In a paged cache they are in
blocks anywhere in memory, and the block table lists these blocks. This script runs both of the
engine's CPU implementations on one layer's cache with scattered blocks, and shows, measured in this
run:

1. where the tokens of four requests are, and how a position becomes a slot,
2. that the plain reference and the faster tiled implementation agree,
3. that the same blocks in contiguous memory give the same result,
4. how much memory is read, and how much padding to the longest request would read.

Read next: attention/reference.py, attention/tiled.py, step/batch.py (in src/minimal_vllm).
Run: python examples/03_paged_attention.py
"""

import time
from array import array
from typing import NamedTuple

import torch
from torch import Tensor

from minimal_vllm import SamplingParams
from minimal_vllm.attention.interface import Attention, AttentionOptions
from minimal_vllm.attention.paged import write_to_cache
from minimal_vllm.attention.reference import ReferenceAttention
from minimal_vllm.attention.tiled import TiledAttention
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.step.batch import Batch, build_batch
from minimal_vllm.step.plan import Plan, ScheduledRequest
from minimal_vllm.step.request import Request

NUM_BLOCKS, BLOCK = 96, 16
NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 6, 2, 64
OPTIONS = AttentionOptions(scale=HEAD_DIM**-0.5)
CPU = torch.device("cpu")

# Name -> number of tokens after this step, number of new tokens in it.
REQUESTS = {"A": (700, 1), "B": (90, 1), "C": (200, 40), "D": (33, 1)}


class Inputs(NamedTuple):
    """Queries ``[T, H, D]``, keys and values ``[T, K, D]`` of the new tokens."""

    q: Tensor
    k: Tensor
    v: Tensor


def main() -> None:
    torch.manual_seed(0)
    block_ids = torch.randperm(NUM_BLOCKS).tolist()
    batch = make_batch(block_ids)
    show_layout(batch)

    cache = LayerCache(*torch.randn(2, NUM_BLOCKS, NUM_KV_HEADS, BLOCK, HEAD_DIM))
    heads = (NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS)
    inputs = Inputs(*(torch.randn(len(batch.positions), n, HEAD_DIM) for n in heads))
    tiled = TiledAttention(BLOCK, NUM_KV_HEADS, HEAD_DIM, CPU)
    write_to_cache(inputs.k, inputs.v, cache, tiled.plan(batch).slots)
    result = show_agreement(tiled, inputs, cache, batch)
    show_one_piece(tiled, inputs, cache, block_ids, result)
    show_bytes(batch)


def make_batch(block_ids: list[int]) -> Batch:
    """Return one step of all requests, which take their blocks from ``block_ids`` in order."""
    plan, unused = Plan(), iter(block_ids)
    for arrival, (name, (length, num_new)) in enumerate(REQUESTS.items()):
        tokens = array("i", range(length))
        request = Request(name, tokens, length, SamplingParams(), arrival)
        request.block_table.extend(next(unused) for _ in range(-(-length // BLOCK)))
        plan.scheduled.append(ScheduledRequest(request, length - num_new, num_new, num_logits=1))
    return build_batch(plan, BLOCK)


def show_layout(batch: Batch) -> None:
    owners = ["·"] * NUM_BLOCKS
    print(f"1. One layer's cache: {NUM_BLOCKS} blocks of {BLOCK} tokens, and their requests\n")
    for row, (name, length) in enumerate(zip(REQUESTS, batch.seq_lens, strict=True)):
        for block in batch.block_tables[row, : -(-length // BLOCK)]:
            owners[block] = name
    for first in range(0, NUM_BLOCKS, 32):
        print(f"   {first:3}  {' '.join(owners[first : first + 32])}")
    last = int(batch.positions[0])
    block = int(batch.block_tables[0, last // BLOCK])
    index, offset = divmod(last, BLOCK)
    print(f"\n   A's new token is at position {last} = {index} * {BLOCK} + {offset}.")
    print(f"   A's block table has block {block} at index {index}, ", end="")
    print(f"so its slot is {block} * {BLOCK} + {offset} = {batch.slot_mapping[0]}.\n")


def show_agreement(tiled: Attention, inputs: Inputs, cache: LayerCache, batch: Batch) -> Tensor:
    print(
        "2. All four requests in one call: A, B and D decode, C prefills 40 tokens of its prompt\n"
    )
    results = {}
    for name, attention in {"reference": ReferenceAttention(CPU), "tiled": tiled}.items():
        attend = attention.plan(batch)
        results[name] = attend(*inputs, cache, OPTIONS)
        begun = time.perf_counter()
        for _ in range(20):
            attend(*inputs, cache, OPTIONS)
        print(f"   {name:9}  {(time.perf_counter() - begun) / 20 * 1e3:6.2f} ms")
    difference = (results["tiled"] - results["reference"]).abs().max()
    print(f"\n   maximum difference: {difference:.0e}\n")
    return results["tiled"]


def show_one_piece(
    attention: Attention, inputs: Inputs, cache: LayerCache, block_ids: list[int], scattered: Tensor
) -> None:
    """Compare with a cache that is reordered so that block ``block_ids[i]`` has index ``i``."""
    in_order = LayerCache(*(layer[block_ids] for layer in cache))
    batch = make_batch(list(range(NUM_BLOCKS)))
    contiguous = attention.plan(batch)(*inputs, in_order, OPTIONS)
    same = torch.equal(contiguous, scattered)
    print("3. The same blocks in order, so that each request is contiguous, give the same result,")
    print(f"   bit for bit: {'yes' if same else 'NO'}. The order of blocks does not matter.\n")


def show_bytes(batch: Batch) -> None:
    num_tokens = int(batch.seq_lens.sum())
    in_blocks = int((-(-batch.seq_lens // BLOCK)).sum()) * BLOCK
    padded = len(REQUESTS) * int(batch.seq_lens.max())
    print("4. Keys and values that one layer has to read at least, in KiB:\n")
    for how, tokens in {
        "only the tokens": num_tokens,
        "whole blocks": in_blocks,
        "padded to the longest": padded,
    }.items():
        kib = tokens * 2 * NUM_KV_HEADS * HEAD_DIM * torch.float32.itemsize / 1024
        print(f"   {how:22} {kib:6,.0f}  {'█' * round(40 * tokens / padded)}")


if __name__ == "__main__":
    main()
