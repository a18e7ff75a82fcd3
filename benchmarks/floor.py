"""What this machine's memory and arithmetic allow, and so the least time that steps could take."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from minimal_vllm.model.config import ModelConfig
from minimal_vllm.trace.step_record import StepRecord

ROWS = 1024
COPIED_BYTES = 1 << 28


@dataclass(frozen=True)
class MachineRates:
    """Measured on this machine, with the threads that torch has."""

    bytes_per_second: float
    """Of a large copy, which reads and writes: both count."""
    flops_per_second: float
    """Of a large matrix product."""


def measure_rates(dtype: torch.dtype) -> MachineRates:
    """The best of several attempts at a copy and at a matrix product."""
    source = torch.ones(COPIED_BYTES // dtype.itemsize, dtype=dtype)
    target = torch.empty_like(source)
    square = torch.ones(ROWS, ROWS, dtype=dtype)
    return MachineRates(
        bytes_per_second=2 * COPIED_BYTES / _best_seconds(lambda: target.copy_(source)),
        flops_per_second=2 * ROWS**3 / _best_seconds(lambda: square @ square),
    )


def _best_seconds(operation: Callable[[], object], attempts: int = 8) -> float:
    seconds = []
    for _ in range(attempts):
        begun = time.perf_counter()
        operation()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def weights_floor(
    steps: Sequence[StepRecord], config: ModelConfig, dtype: torch.dtype, rates: MachineRates
) -> float:
    """Seconds that the products with weights take at least.

    Each step reads all weights once, and multiplies each of its tokens with those of the layers,
    and each that samples with those of the output: it takes the longer of the two times.
    """
    head = config.vocab_size * config.hidden_size
    layers = config.num_parameters - head * (1 if config.tie_word_embeddings else 2)
    read = (layers + head) * dtype.itemsize / rates.bytes_per_second
    return sum(
        max(read, 2 * (layers * tokens + head * rows) / rates.flops_per_second)
        for tokens, rows in map(_tokens_and_rows, steps)
    )


def attention_floor(
    steps: Sequence[StepRecord], config: ModelConfig, dtype: torch.dtype, rates: MachineRates
) -> float:
    """Seconds that attention takes at least.

    Each step reads the keys and values of its requests once, and multiplies each of its tokens
    with all before it (sliding windows are ignored).
    """
    kv_bytes = config.kv_bytes_per_token(str(dtype).removeprefix("torch."))
    flops_per_pair = 4 * config.num_layers * config.num_heads * config.head_dim
    seconds = 0.0
    for step in steps:
        contexts = [(entry.start + entry.num_tokens, entry.num_tokens) for entry in step.scheduled]
        keys = sum(end for end, _ in contexts)
        pairs = sum(num_new * end - num_new * (num_new - 1) // 2 for end, num_new in contexts)
        seconds += max(
            keys * kv_bytes / rates.bytes_per_second,
            pairs * flops_per_pair / rates.flops_per_second,
        )
    return seconds


def _tokens_and_rows(step: StepRecord) -> tuple[int, int]:
    tokens = sum(entry.num_tokens for entry in step.scheduled)
    rows = sum(entry.sampled_token is not None for entry in step.scheduled)
    return tokens, rows
