"""Five fixed workloads for comparing engines: the same token ids each time, with fixed lengths.

Each is a list of (prompt token ids, number of output tokens) pairs. All requests arrive at once,
and the end-of-sequence token is to be ignored. ``mixed256`` is the workload of nano-vllm's
``bench.py``.
"""

from collections.abc import Callable
from random import Random

VOCAB_SIZE = 10_001
"""Number of different token ids in prompts."""

Workload = list[tuple[list[int], int]]
"""List of (prompt token ids, number of output tokens) pairs."""


def mixed256() -> Workload:
    """Make 256 requests of 100 to 1,024 tokens in and out, for continuous batching."""
    random = Random(0)
    prompts = [_tokens(random, random.randint(100, 1024)) for _ in range(256)]
    return [(prompt, random.randint(100, 1024)) for prompt in prompts]


def prefix256() -> Workload:
    """Make 256 requests with 2,048 shared and 64 own tokens in and 64 out, for the prefix cache."""
    random = Random(1)
    shared = _tokens(random, 2048)
    return [(shared + _tokens(random, 64), 64) for _ in range(256)]


def latency1() -> Workload:
    """Make one request, 128 tokens in and 512 out, for the minimum duration of a step."""
    return [(_tokens(Random(2), 128), 512)]


def long32() -> Workload:
    """Make 32 requests, 8,192 tokens in and 256 out, for attention over long contexts."""
    random = Random(3)
    return [(_tokens(random, 8192), 256) for _ in range(32)]


def prefill64() -> Workload:
    """Make 64 requests, 4,096 tokens in and one out, for arithmetic."""
    random = Random(4)
    return [(_tokens(random, 4096), 1) for _ in range(64)]


FIXED_WORKLOADS: dict[str, Callable[[], Workload]] = {
    each.__name__: each for each in (mixed256, prefix256, latency1, long32, prefill64)
}
"""Functions that make the workloads, by name."""


def _tokens(random: Random, count: int) -> list[int]:
    return [random.randint(0, VOCAB_SIZE - 1) for _ in range(count)]
