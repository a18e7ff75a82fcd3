"""Requests that are drawn by a seed. A prompt is a list of symbols, not yet of tokens or words."""

from dataclasses import dataclass

import numpy as np

from minimal_vllm_lab.bench.config import Workload


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """What to send."""

    prompt: list[int]
    """Symbols, each of which becomes one token: numbers below that of the symbols there are."""
    output_len: int
    """How many tokens to ask for."""


def make_requests(workload: Workload, num_symbols: int, run: int = 0) -> list[SampleRequest]:
    """Draw the requests of one run.

    Args:
        workload: says how many, how long and how alike.
        num_symbols: how many different symbols there are.
        run: runs of one benchmark have the same lengths but other prompts, so that none finds its
            own in a prefix cache.
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
    turns = order.permutation(workload.num_prompts) % len(prefixes)
    return [
        SampleRequest(
            prefixes[turn] + _draw(content, num_symbols, workload.prefix_repetition_suffix_len),
            workload.prefix_repetition_output_len,
        )
        for turn in turns
    ]


def _generators(workload: Workload, run: int) -> tuple[np.random.Generator, np.random.Generator]:
    """What all runs share, and what is this run's own."""
    return np.random.default_rng(workload.seed), np.random.default_rng([workload.seed, run])


def _uniform(rng: np.random.Generator, mean: int, ratio: float, count: int) -> list[int]:
    """Between vLLM's bounds, both included; never 0."""
    least, most = int(np.floor(mean * (1 - ratio))), int(np.ceil(mean * (1 + ratio)))
    lengths: list[int] = rng.integers(max(least, 1), most, count, endpoint=True).tolist()
    return lengths


def _draw(rng: np.random.Generator, num_symbols: int, count: int) -> list[int]:
    symbols: list[int] = rng.integers(0, num_symbols, count).tolist()
    return symbols
