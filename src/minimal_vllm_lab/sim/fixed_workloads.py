"""Five workloads that engines are compared on: the same token ids each time, at full length.

Each is a list of (prompt's token ids, number of output tokens), all asked for at once; the end of
sequence is to be ignored. ``mixed256`` is that of nano-vllm's ``bench.py``.
"""

from collections.abc import Callable
from random import Random

VOCAB_SIZE = 10_001

Workload = list[tuple[list[int], int]]


def mixed256() -> Workload:
    """256 requests; prompts and outputs of 100 to 1,024 tokens: continuous batching."""
    random = Random(0)
    prompts = [_tokens(random, random.randint(100, 1024)) for _ in range(256)]
    return [(prompt, random.randint(100, 1024)) for prompt in prompts]


def prefix256() -> Workload:
    """256 requests that share 2,048 tokens, with 64 of their own: the prefix cache."""
    random = Random(1)
    shared = _tokens(random, 2048)
    return [(shared + _tokens(random, 64), 64) for _ in range(256)]


def latency1() -> Workload:
    """One request, 128 tokens in and 512 out: what a step costs at least."""
    return [(_tokens(Random(2), 128), 512)]


def long32() -> Workload:
    """32 requests, 8,192 tokens in and 256 out: attention over long contexts."""
    random = Random(3)
    return [(_tokens(random, 8192), 256) for _ in range(32)]


def prefill64() -> Workload:
    """64 requests, 4,096 tokens in and one out: arithmetic."""
    random = Random(4)
    return [(_tokens(random, 4096), 1) for _ in range(64)]


FIXED_WORKLOADS: dict[str, Callable[[], Workload]] = {
    each.__name__: each for each in (mixed256, prefix256, latency1, long32, prefill64)
}


def _tokens(random: Random, count: int) -> list[int]:
    return [random.randint(0, VOCAB_SIZE - 1) for _ in range(count)]
