"""Floors: the minimum duration of steps, given this machine's memory bandwidth and arithmetic."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.linear import Linear
from minimal_vllm.model.packed_linear import PackedLinear, can_pack
from minimal_vllm.model.supported import DTYPE_BYTES
from minimal_vllm.model.weight_bytes import idle_expert_bytes, weight_bytes
from minimal_vllm.trace.step_record import StepRecord

ROWS = 1024
"""Rows and columns of the matrices in the measured product."""
COPIED_BYTES = 1 << 28
"""Bytes of the measured copy."""
ATTEMPTS = 8
"""Number of measurements, of which the fastest counts."""


@dataclass(frozen=True)
class MachineRates:
    """Rates of this machine, measured with torch's number of threads."""

    bytes_per_second: float
    """Rate of a large copy. Bytes read and bytes written both count."""
    flops_per_second: float
    """Rate of a large product with weights."""


def measure_rates(dtype: torch.dtype) -> MachineRates:
    """Measure a copy and the model's kind of product, each as the best of several attempts."""
    source = torch.ones(COPIED_BYTES // dtype.itemsize, dtype=dtype)
    target = torch.empty_like(source)
    projection = (PackedLinear if can_pack(dtype) else Linear)(ROWS, {"square": ROWS}, False)
    projection.to(dtype).weight.fill_(1)
    projection.after_loading(approximate=False)
    square = torch.ones(ROWS, ROWS, dtype=dtype)
    return MachineRates(
        bytes_per_second=2 * COPIED_BYTES / _best_seconds(lambda: target.copy_(source)),
        flops_per_second=2 * ROWS**3 / _best_seconds(lambda: projection.multiply(square)),
    )


def _best_seconds(operation: Callable[[], object]) -> float:
    seconds = []
    for _ in range(ATTEMPTS):
        begun = time.perf_counter()
        operation()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def weights_floor(
    steps: Sequence[StepRecord], config: ModelConfig, dtype: torch.dtype, rates: MachineRates
) -> float:
    """Return the minimum time of the products with weights, in seconds.

    Each step reads all weights once, as they are quantized, or in half precision if they can be
    packed, except those of experts that no token chooses. It multiplies each of its tokens with the
    layers' weights, and each sampled token with the LM head. The longer of the two times counts.
    """
    stored = "float16" if can_pack(dtype) else str(dtype).removeprefix("torch.")
    head = config.vocab_size * config.hidden_size
    unread = 0 if config.tie_word_embeddings else head * DTYPE_BYTES[stored]
    all_bytes = weight_bytes(config, stored) - unread
    embeddings = head * (1 if config.tie_word_embeddings else 2)
    active = config.expected_parameters(1) - embeddings

    def seconds(tokens: int, rows: int) -> float:
        read = all_bytes - idle_expert_bytes(config, stored, tokens)
        return max(
            read / rates.bytes_per_second,
            2 * (active * tokens + head * rows) / rates.flops_per_second,
        )

    return sum(seconds(*_tokens_and_rows(step)) for step in steps)


def attention_floor(
    steps: Sequence[StepRecord], config: ModelConfig, dtype: torch.dtype, rates: MachineRates
) -> float:
    """Return the minimum time of attention, in seconds.

    Each step reads the keys and values of its requests once, and multiplies each of its tokens with
    all tokens before it. Sliding windows are ignored.
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
    rows = sum(len(entry.sampled_tokens) + entry.num_rejected for entry in step.scheduled)
    return tokens, rows
