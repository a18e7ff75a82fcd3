"""Choosing what the configuration leaves open: device, dtype, limits, and size of the KV cache.

The arithmetic doesn't import torch, so that the simulator can size GPUs that aren't present.
"""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from minimal_vllm.cache.layer_groups import LayerGroups, group_layers
from minimal_vllm.cache.memory import DEFAULT_UTILIZATION, DeviceMemory
from minimal_vllm.config import EngineConfig, SchedulerConfig
from minimal_vllm.formats.gguf_file import find_gguf, read_gguf
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.eagle_config import NUM_READ, EagleConfig
from minimal_vllm.model.gguf_config import main_type
from minimal_vllm.model.quantization_config import Int4, Mxfp4, choose_quantization
from minimal_vllm.model.quantized_experts import experts_format
from minimal_vllm.model.rope_config import LongRopeScaling
from minimal_vllm.model.supported import DTYPE_BYTES
from minimal_vllm.model.weight_bytes import weight_bytes
from minimal_vllm.step.batch import LOGITS_AT_A_TIME

if TYPE_CHECKING:
    from pathlib import Path

    import torch

logger = logging.getLogger(__name__)

DEFAULT_BATCHED_TOKENS = {"cpu": 2048, "cuda": 8192 + 128}
"""Token budget of a step, by the type of the device. On a GPU, prompts of 2,048, 4,096 or 8,192
tokens fill a step and leave room for requests that decode, instead of losing their last tokens to
the next step."""
LARGE_GPU = 70 * 2**30
"""Memory in bytes from which on a GPU is large. Its steps have twice the token budget, as in
vLLM."""
INT8_TYPES = ("Q8_0", "Q4_0")
"""Types of a GGUF file's weights that a CPU keeps as 8-bit integers."""
SAMPLER_BYTES_PER_LOGIT = 60
"""Peak memory of the sampler per logit, in bytes: 56 were measured, while a row's whole vocabulary
is sorted for top_p."""


def read_model_config(config: EngineConfig, checkpoint: "Path") -> ModelConfig:
    """Read a checkpoint's hyperparameters, and apply the configuration's options to them.

    Raises:
        ValueError: the checkpoint's files are invalid, or an option contradicts them.
    """
    model = ModelConfig.from_checkpoint(checkpoint, config.hf_overrides)
    asked = config.quantization or _gguf_quantization(config, checkpoint)
    quantization = choose_quantization(asked, model.quantization)
    quantized = replace(model, quantization=quantization)
    experts_format(quantized)  # refuses what can't be
    return quantized


def _gguf_quantization(config: EngineConfig, checkpoint: "Path") -> str | None:
    """Return the quantization that a GGUF file is loaded with by default.

    On a CPU, weights in ``INT8_TYPES`` become integers of the engine's own format, so that they
    take no more memory than 8 bits each. A dtype that is asked for is what they get.
    """
    gguf = find_gguf(checkpoint)
    if gguf is None or config.dtype != "auto" or choose_device(config.device).type != "cpu":
        return None
    return "int8" if main_type(read_gguf(gguf)) in INT8_TYPES else None


def choose_device(name: str) -> "torch.device":
    """Return the device of that name; for ``auto``, the GPU if there is one, else the CPU.

    Raises:
        ValueError: a GPU is asked for, but there is none.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but PyTorch finds no GPU here: use device='cpu'")
    return torch.device(name)


def choose_dtype(name: str, checkpoint_dtype: str, device: "torch.device") -> "torch.dtype":
    """Return the dtype of that name; for ``auto``, the checkpoint's on a GPU and float32 on a CPU.

    Most CPUs have to convert 16-bit numbers before computing with them. Weights may be kept in 16
    bits all the same; see ``packed_linear``.
    """
    import torch

    from minimal_vllm.model.packed_linear import can_multiply

    if name == "auto":
        name = checkpoint_dtype if device.type == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, name)
    if device.type == "cpu" and not can_multiply(dtype):
        logger.warning("This CPU can't multiply %s numbers: float32 is faster and as exact", name)
    return dtype


def choose_kv_dtype(config: EngineConfig, dtype: "torch.dtype") -> "torch.dtype":
    """Return the dtype of the KV cache of a model that runs in ``dtype``."""
    import torch

    return torch.float8_e4m3fn if config.kv_cache_dtype == "fp8" else dtype


def choose_model_len(config: EngineConfig, model: ModelConfig) -> int:
    """Return the maximum length of a request, in tokens: the configured one, else the model's.

    Raises:
        ValueError: the configured length exceeds the model's.
    """
    limit = model.max_positions
    if config.max_model_len is not None and config.max_model_len > limit:
        reason = "max_position_embeddings and rope_scaling in its config.json"
        if isinstance(model.rope.scaling, LongRopeScaling):
            reason = (
                "longer sequences are rotated otherwise by its longrope scaling, so their cached "
                "keys would become wrong as they grow beyond this length"
            )
        raise ValueError(
            f"max_model_len is {config.max_model_len}, but the model has only {limit} positions "
            f"({reason})"
        )
    return config.max_model_len or limit


def check_weights_fit(model: ModelConfig, dtype: "torch.dtype", memory: DeviceMemory) -> None:
    """Check that the weights fit into free memory, before the system kills the process instead.

    Raises:
        ValueError: the weights don't fit.
    """
    weights = weight_bytes(model, str(dtype).removeprefix("torch."))
    if weights > memory.free:
        raise ValueError(
            f"the model does not fit: its weights take {_gib(weights)} in "
            f"{str(dtype).removeprefix('torch.')}, but only {_gib(memory.free)} of the "
            f"{memory.device_type}'s {_gib(memory.total)} are free: choose another model or dtype"
        )


def choose_groups(model: ModelConfig, model_len: int) -> LayerGroups:
    """Return the groups of a model's layers, each of which has block tables of its own.

    Args:
        model: hyperparameters of the model.
        model_len: maximum length of a request.
    """
    return group_layers([layer.window for layer in model.layers], model_len)


def choose_num_blocks(
    config: EngineConfig,
    model: ModelConfig,
    groups: LayerGroups,
    dtype: "torch.dtype",
    memory: DeviceMemory,
    batched_tokens: int,
    draft: ModelConfig | EagleConfig | None = None,
) -> int:
    """Return the number of KV blocks: the configured number, else as many as fit into memory.

    A draft model or an EAGLE-3 head has a part of each block, and takes memory in a step too.

    Raises:
        ValueError: not a single block fits.
    """
    if config.num_gpu_blocks_override is not None:
        return config.num_gpu_blocks_override
    activations = estimate_activations(model, dtype.itemsize, batched_tokens, config.max_num_seqs)
    if memory.device_type == "cuda":
        activations += unpacked_bytes(model, dtype.itemsize)
    block_bytes = kv_block_bytes(config, model, groups, dtype)
    if draft is not None:
        block_bytes += draft_block_bytes(config, draft, dtype)
        activations += draft_activations(draft, dtype.itemsize, batched_tokens, config.max_num_seqs)
    return count_fitting_blocks(config, memory, activations, block_bytes)


def count_fitting_blocks(
    config: EngineConfig, memory: DeviceMemory, activations: int, block_bytes: int
) -> int:
    """Return the number of KV blocks that fit into memory next to weights and activations.

    Args:
        config: the user's configuration, of which the share of the memory to use is read.
        memory: memory of the device, measured after the weights were loaded.
        activations: bytes that the largest step takes.
        block_bytes: bytes of one block, over all layers of a group.

    Raises:
        ValueError: not a single block fits.
    """
    share = config.gpu_memory_utilization or DEFAULT_UTILIZATION[memory.device_type]
    num_blocks = memory.kv_budget(share, activations) // block_bytes
    if num_blocks < 1:
        raise ValueError(
            f"no memory is left for the KV cache: this process may use {share:.0%} of "
            f"{_gib(memory.total)}, of which {_gib(max(0, memory.free))} are free; it uses "
            f"{_gib(memory.used_by_process)} already and a step takes up to {_gib(activations)}: "
            f"raise gpu_memory_utilization, lower max_num_batched_tokens and max_num_seqs, or "
            f"choose a smaller model"
        )
    return num_blocks


def kv_block_bytes(
    config: EngineConfig, model: ModelConfig, groups: LayerGroups, dtype: "torch.dtype"
) -> int:
    """Return the bytes of one KV block, over all layers of a group; ``dtype`` is the model's."""
    numbers = model.kv_bytes_per_token("float16") // DTYPE_BYTES["float16"]
    itemsize = choose_kv_dtype(config, dtype).itemsize
    return config.block_size * groups.size * numbers * itemsize // model.num_layers


def draft_block_bytes(
    config: EngineConfig, draft: ModelConfig | EagleConfig, dtype: "torch.dtype"
) -> int:
    """Return the bytes of a block in a draft model's or head's cache, over all its layers.

    For a head, the hidden states that it reads are included.

    Args:
        config: the user's configuration.
        draft: hyperparameters of the draft model or EAGLE-3 head.
        dtype: dtype of the model.
    """
    if isinstance(draft, EagleConfig):
        kv_itemsize = choose_kv_dtype(config, dtype).itemsize
        return config.block_size * draft.bytes_per_token(dtype.itemsize, kv_itemsize)
    groups = group_layers([None] * draft.num_layers, draft.max_positions)
    return kv_block_bytes(config, draft, groups, dtype)


def estimate_activations(
    model: ModelConfig, itemsize: int, batched_tokens: int, max_num_seqs: int
) -> int:
    """Return an upper estimate of the bytes that the largest step takes besides weights and cache.

    At the widest point of a layer, in the MLP, each token has its residual, the normalized input,
    gate and up, and their product. In a mixture of experts, each of its experts has gate, up, their
    product and a result, and each expert has a list of the tokens that it may get. Attention holds
    float32 copies of queries and results. The sampler peaks when it sorts a whole vocabulary for
    top_p.
    """
    heads = model.num_heads * model.head_dim
    widest = max(3 * model.intermediate_size, 8 * heads)
    if model.experts:
        of_expert = 3 * model.experts.inner_size + model.hidden_size
        lists = 8 * model.experts.count // itemsize
        widest = max(widest, model.experts.per_token * of_expert + lists)
    per_token = 3 * model.hidden_size + widest
    logits = SAMPLER_BYTES_PER_LOGIT * model.vocab_size * max(max_num_seqs, LOGITS_AT_A_TIME)
    return batched_tokens * per_token * itemsize + logits


def draft_activations(
    draft: ModelConfig | EagleConfig, itemsize: int, batched_tokens: int, max_num_seqs: int
) -> int:
    """Return the bytes that the largest step takes for what guesses; see ``estimate_activations``.

    For a head, the hidden states that it reads are included.

    Args:
        draft: hyperparameters of the draft model or EAGLE-3 head.
        itemsize: bytes of a number of the model.
        batched_tokens: maximum number of tokens in a step.
        max_num_seqs: maximum number of requests in a step.
    """
    if not isinstance(draft, EagleConfig):
        return estimate_activations(draft, itemsize, batched_tokens, max_num_seqs)
    states = (2 * NUM_READ * draft.target_hidden_size + 3 * draft.layer.hidden_size) * itemsize
    return batched_tokens * states + estimate_activations(
        draft.layer, itemsize, batched_tokens, max_num_seqs
    )


def unpacked_bytes(model: ModelConfig, itemsize: int) -> int:
    """Return the bytes that a layer's experts take while a GPU has them unpacked from 4 bits.

    From MXFP4 it does so in steps with many tokens, and with one of their two matrices at a time;
    from integers in each step, and with both.
    """
    form = experts_format(model)
    if model.experts is None or not isinstance(form, Mxfp4 | Int4):
        return 0
    sizes = [
        out_size * in_size
        for out_size, in_size in model.experts.matrices(model.hidden_size).values()
    ]
    at_once = max(sizes) if isinstance(form, Mxfp4) else sum(sizes)
    return model.experts.count * at_once * itemsize


def choose_scheduler_config(
    config: EngineConfig,
    groups: LayerGroups,
    model_len: int,
    batched_tokens: int,
    num_blocks: int,
) -> SchedulerConfig:
    """Return the scheduler's limits.

    A maximum length that is not configured is lowered to the capacity of the KV cache, with a
    warning.

    Raises:
        ValueError: the limits contradict each other.
    """
    limits = SchedulerConfig(
        max_model_len=model_len,
        max_num_batched_tokens=batched_tokens,
        max_num_seqs=config.max_num_seqs,
        block_size=config.block_size,
        enable_prefix_caching=config.enable_prefix_caching,
        enable_chunked_prefill=config.enable_chunked_prefill,
        policy=config.scheduling_policy,
        windows=groups.windows,
    )
    longest = limits.longest_request(num_blocks)
    if longest < 1:
        raise ValueError(
            f"the KV cache has {num_blocks} blocks, but a token needs one in each of the model's "
            f"{groups.number} groups of layers: raise num_gpu_blocks_override or "
            f"gpu_memory_utilization"
        )
    if config.max_model_len is None and longest < model_len:
        logger.warning(
            "The KV cache holds only %d tokens: lowering max_model_len from %d to that number",
            longest,
            model_len,
        )
        return replace(limits, max_model_len=longest)
    return limits


def count_fitting_tokens(limits: SchedulerConfig, num_blocks: int) -> int:
    """Return the number of tokens that fit into a pool, in requests of the maximum length."""
    per_group = limits.blocks_for(limits.max_model_len)
    held = limits.blocks_held_for(limits.max_model_len)
    return num_blocks * per_group // held * limits.block_size


def choose_batched_tokens(
    config: EngineConfig, model_len: int, device_type: str, memory: int = 0
) -> int:
    """Return the token budget of a step: the configured one, else one that suits other limits.

    Args:
        config: the user's configuration.
        model_len: maximum length of a request.
        device_type: ``cpu`` or ``cuda``.
        memory: memory of the GPU, in bytes; a large GPU gets twice the budget.
    """
    default = DEFAULT_BATCHED_TOKENS[device_type]
    if device_type == "cuda" and memory >= LARGE_GPU:
        default *= 2
    longest_prompt = 0 if config.enable_chunked_prefill else model_len
    return config.max_num_batched_tokens or max(default, config.max_num_seqs, longest_prompt)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
