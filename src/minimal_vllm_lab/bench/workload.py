"""Random requests, whose prompts are lists of symbols that stand for tokens or words."""

from dataclasses import dataclass

import numpy as np

from minimal_vllm_lab.bench.config import Workload


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """Request to send."""

    prompt: list[int]
    """Symbols, numbered from 0; each becomes one token."""
    output_len: int
    """Number of output tokens to request."""


def make_requests(workload: Workload, num_symbols: int, run: int = 0) -> list[SampleRequest]:
    """Draw the requests of one run.

    Args:
        workload: number of requests, their lengths and their shared prefixes.
        num_symbols: number of different symbols.
        run: number of the run. Runs of one benchmark have the same lengths but other prompts,
            so that no run finds its prompts in a prefix cache.
    """
    if workload.dataset_name == "random":
        return _random(workload, num_symbols, run)
    return _prefix_repetition(workload, num_symbols, run)


def _random(workload: Workload, num_symbols: int, run: int) -> list[SampleRequest]:
    lengths, content = _generators(workload, run)
    ratio, count = workload.random_range_ratio, workload.num_prompts
    input_lens = _uniform(lengths, workload.random_input_len, ratio, count)
    output_lens = _uniform(lengths, workload.random_output_len, ratio, count)
    prefix = _draw(content, num_symbols, workload.random_prefix_len)
    return [
        SampleRequest(prefix + _draw(content, num_symbols, input_len), output_len)
        for input_len, output_len in zip(input_lens, output_lens, strict=True)
    ]


def _prefix_repetition(workload: Workload, num_symbols: int, run: int) -> list[SampleRequest]:
    order, content = _generators(workload, run)
    prefixes = [
        _draw(content, num_symbols, workload.prefix_repetition_prefix_len)
        for _ in range(workload.prefix_repetition_num_prefixes)
    ]
    prefix_indices = order.permutation(workload.num_prompts) % len(prefixes)
    return [
        SampleRequest(
            prefixes[index] + _draw(content, num_symbols, workload.prefix_repetition_suffix_len),
            workload.prefix_repetition_output_len,
        )
        for index in prefix_indices
    ]


def _generators(workload: Workload, run: int) -> tuple[np.random.Generator, np.random.Generator]:
    """Return two random generators: one that all runs share, and one of this run only."""
    return np.random.default_rng(workload.seed), np.random.default_rng([workload.seed, run])


def _uniform(rng: np.random.Generator, mean: int, ratio: float, count: int) -> list[int]:
    """Return lengths between vLLM's bounds, inclusive; at least 1."""
    shortest = max(int(np.floor(mean * (1 - ratio))), 1)
    longest = int(np.ceil(mean * (1 + ratio)))
    lengths: list[int] = rng.integers(shortest, longest, count, endpoint=True).tolist()
    return lengths


def _draw(rng: np.random.Generator, num_symbols: int, count: int) -> list[int]:
    symbols: list[int] = rng.integers(0, num_symbols, count).tolist()
    return symbols
