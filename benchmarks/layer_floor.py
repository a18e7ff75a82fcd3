"""The minimum time of each part of a decoder layer in a step, and of the head.

A part reads its weights as they are stored, reads its input and writes its output once, and does
the arithmetic of the step's tokens. The longer of the two times counts, at the rates of
``kernel_timing``. Keys and values that several requests share are read once.
"""

from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.kernel_timing import floor_of
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.decoder import Decoder
from minimal_vllm.model.layer_config import LayerConfig
from minimal_vllm.model.layers import DecoderLayer, MoE
from minimal_vllm.model.linear import Projection
from minimal_vllm.step.plan import Plan

NVLINK = 450e9
"""Bytes per second that an H100 or H200 sends over NVLink, and receives at the same time: half of
the datasheet's 900 GB/s."""


@dataclass(frozen=True)
class StepWork:
    """Sizes of a step."""

    contexts: list[tuple[int, int]]
    """Position of the first new token, and number of new tokens, of each request."""
    num_sampled: int
    """Number of requests that sample."""
    max_keys: int
    """Number of tokens in the requests' blocks, where a shared block counts once."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens that the step computes."""
        return sum(num_new for _, num_new in self.contexts)


@dataclass(frozen=True)
class Precision:
    """Bytes of a number, and the number of ranks."""

    activation: int
    """Bytes of an activation."""
    cached: int
    """Bytes of a number in the KV cache."""
    num_ranks: int = 1


def work_of(plan: Plan, block_size: int) -> StepWork:
    """Return the sizes of a planned step."""
    blocks = {block for entry in plan.scheduled for block in entry.request.block_table}
    return StepWork(
        [(entry.start, entry.num_new) for entry in plan.scheduled],
        len(plan.sampling),
        len(blocks) * block_size,
    )


def num_keys(work: StepWork, window: int | None) -> int:
    """Return the number of tokens whose keys and values a layer reads."""
    if window is None:
        return min(sum(start + num_new for start, num_new in work.contexts), work.max_keys)
    return sum(min(start + num_new, window + num_new - 1) for start, num_new in work.contexts)


def num_pairs(work: StepWork, window: int | None) -> int:
    """Return the number of pairs of a token and one that it attends to."""
    return sum(
        _attended(start + num_new, window) - _attended(start, window)
        for start, num_new in work.contexts
    )


def _attended(num_tokens: int, window: int | None) -> int:
    """Return the number of pairs among the first tokens of a request."""
    growing = num_tokens if window is None else min(num_tokens, window)
    beyond = num_tokens - growing
    return growing * (growing + 1) // 2 + beyond * (window or 0)


def layer_floors(
    decoder: Decoder, number: int, work: StepWork, precision: Precision
) -> dict[str, float]:
    """Return the floors of a layer's parts in microseconds, by the names of ``layer_marks``.

    Args:
        decoder: the network, or a rank's share of it.
        number: number of the layer, from 0.
        work: sizes of the step.
        precision: bytes of its numbers.
    """
    layer, config, tokens = decoder.layers[number], decoder.config, work.num_tokens
    if not isinstance(layer, DecoderLayer):
        raise TypeError(f"a {type(layer).__name__} has no known parts")
    itemsize = precision.activation
    over_stream = floor_of(4 * tokens * config.hidden_size * itemsize, 0)
    norms = ("before attention", "after attention", "before MLP", "after MLP")
    return {
        **{f"norm {where}": over_stream for where in norms},
        "qkv product": product_floor(layer.self_attn.qkv_proj, tokens, itemsize),
        **_attention_floors(config, config.layers[number], work, precision),
        "o product": product_floor(layer.self_attn.o_proj, tokens, itemsize),
        "sum over GPUs": sum_floor(tokens * config.hidden_size * itemsize, precision.num_ranks),
        **_mlp_floors(layer, tokens, itemsize),
    }


def head_floor(decoder: Decoder, work: StepWork, precision: Precision) -> float:
    """Return the floor of the head in microseconds; ranks exchange their parts of the logits."""
    logits = work.num_sampled * decoder.config.vocab_rows * precision.activation
    product = product_floor(decoder.lm_head, work.num_sampled, precision.activation)
    return product + (precision.num_ranks - 1) * logits / NVLINK * 1e6


def product_floor(projection: Projection, tokens: int, itemsize: int) -> float:
    """Return the floor of a product in microseconds. A gated one writes half of its columns."""
    out_size = sum(projection.parts.values())
    written = out_size // 2 if hasattr(projection, "activation") else out_size
    moved = weight_bytes(projection) + tokens * (projection.in_size + written) * itemsize
    return floor_of(moved, 2 * tokens * projection.in_size * out_size / speedup(projection))


def sum_floor(num_bytes: int, num_ranks: int) -> float:
    """Return the floor of a sum over ranks in microseconds: each gets its part, then all sums."""
    return 2 * (num_ranks - 1) / num_ranks * num_bytes / NVLINK * 1e6


def weight_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's parameters, as they are stored."""
    return sum(each.numel() * each.element_size() for each in module.parameters())


def speedup(module: nn.Module) -> int:
    """Return how many times as fast as 16-bit numbers the module's can be multiplied."""
    return 2 if any(each.dtype == torch.float8_e4m3fn for each in module.parameters()) else 1


def _attention_floors(
    config: ModelConfig, layer: LayerConfig, work: StepWork, precision: Precision
) -> dict[str, float]:
    tokens, itemsize = work.num_tokens, precision.activation
    queries = tokens * config.num_heads * config.head_dim
    keys = tokens * config.num_kv_heads * config.head_dim
    read = 2 * num_keys(work, layer.window) * config.num_kv_heads * config.head_dim
    flops = 4 * num_pairs(work, layer.window) * config.num_heads * config.head_dim
    # Queries and keys are rotated in place; keys and values are written to the cache.
    rotated = (2 * queries + 3 * keys) * itemsize + 2 * keys * precision.cached
    return {
        "rotate and store": floor_of(rotated, 0),
        "attention": floor_of(read * precision.cached + 2 * queries * itemsize, flops),
    }


def _mlp_floors(layer: DecoderLayer, tokens: int, itemsize: int) -> dict[str, float]:
    mlp = layer.mlp
    if not isinstance(mlp, MoE):
        return {
            "gate and up": product_floor(mlp.gate_up_proj, tokens, itemsize),
            "down": product_floor(mlp.down_proj, tokens, itemsize),
        }
    hidden, experts = mlp.router.in_size, mlp.experts.config
    read = weight_bytes(mlp.experts) * experts.expected_hit(tokens) / experts.count
    flops = 2 * tokens * experts.per_token * experts.expert_parameters(hidden)
    moved = read + 2 * tokens * hidden * itemsize
    return {
        "router": product_floor(mlp.router, tokens, itemsize),
        "experts": floor_of(moved, flops / speedup(mlp.experts)),
    }
