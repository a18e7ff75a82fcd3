"""How a decode step fills a GPU's SMs: one program per request, or pieces of contexts.

The first part only counts. Then the real kernel runs, in Triton's interpreter on the CPU.
"""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported

import heapq

import torch
from attention import LENGTHS, OPTIONS, B, D, G, K, S, make_batch

from minimal_vllm.attention.kernels.pieces import cut_reference
from minimal_vllm.attention.reference import ReferenceAttention
from minimal_vllm.attention.triton_backend import TritonAttention
from minimal_vllm.cache.kv_cache import LayerCache

PROCESSORS = 132  # of an H200
CPU = torch.device("cpu")


def main() -> None:
    ends = torch.tensor(LENGTHS, dtype=torch.int32)
    pieces = cut_reference(torch.zeros_like(ends), ends, K, PROCESSORS)
    size = int(pieces.piece_size)
    in_pieces = [
        min(size, length - first) for length in LENGTHS for first in range(0, length, size)
    ]
    print("contexts are read by   programs   time   SMs at work, on average")
    show("one program each", LENGTHS)
    show(f"pieces of {size} keys", in_pieces)
    check_kernel()


def show(how: str, contexts: list[int]) -> None:
    """Assign a program per context and kv head to the next free SM; a key takes one unit."""
    programs = contexts * K
    ends = [0] * PROCESSORS
    for length in programs:
        heapq.heappush(ends, heapq.heappop(ends) + length)
    at_work = sum(programs) / max(ends)
    print(f"{how:22} {len(programs):8} {max(ends):6} {at_work:16.1f} of {PROCESSORS}")


def check_kernel() -> None:
    torch.manual_seed(0)
    batch, cache = make_batch(), LayerCache(*torch.randn(2, B, K, S, D))
    q, new = torch.randn(len(LENGTHS), K * G, D), torch.empty(0)
    plain = ReferenceAttention(CPU)
    ours = TritonAttention(
        windows=frozenset([None]),
        num_heads=K * G,
        num_kv_heads=K,
        head_dim=D,
        max_num_seqs=len(LENGTHS),
        num_sms=PROCESSORS,
        device=CPU,
        dtype=torch.float32,
    )
    expected = plain.plan(batch)(q, new, new, cache, OPTIONS)
    result = ours.plan(batch)(q, new, new, cache, OPTIONS)
    torch.testing.assert_close(result, expected)
    difference = float((result - expected).abs().max())
    print(f"\nthe kernel and the reference differ by {difference:.0e} at most")


if __name__ == "__main__":
    main()
