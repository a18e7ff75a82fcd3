"""``minimal-vllm info``: describe a model, and how it fits this machine. Reads no weights."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import click

from minimal_vllm.cli.options import SectionedCommand, field_options, given_options
from minimal_vllm.cli.traits import describe_traits
from minimal_vllm.config import EngineConfig, SchedulerConfig
from minimal_vllm.demo import DEMO_MODEL_DIR
from minimal_vllm.formats.gguf_file import find_gguf, read_gguf
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.divided_config import divide
from minimal_vllm.model.gguf_config import describe_types
from minimal_vllm.model.hub import resolve_model
from minimal_vllm.model.supported import DTYPE_BYTES
from minimal_vllm.model.weight_bytes import idle_expert_bytes, weight_bytes

OPTIONS = frozenset(
    {
        "revision",
        "download_dir",
        "hf_overrides",
        "dtype",
        "quantization",
        "kv_cache_dtype",
        "attention_backend",
        "max_model_len",
        "block_size",
        "gpu_memory_utilization",
        "max_num_batched_tokens",
        "max_num_seqs",
        "chat_template",
        "speculative_config",
        "tensor_parallel_size",
    }
)
"""Fields of ``EngineConfig`` on which the answer depends."""


@dataclass(frozen=True)
class DeviceFit:
    """Prediction of how a model would run on one device, with all sizes in bytes."""

    device: str
    num_ranks: int
    """Number of processes that would share the model; all sizes are of each of them."""
    dtype: str
    attention_backend: str
    memory: int
    free_memory: int
    weights: int
    """Size of the weights, the draft model's included."""
    draft_weights: int
    """Size of the draft model's weights; 0 without one."""
    kv_per_token: int
    """Size of a token in the KV cache, the draft model's included."""
    kv_per_block: int
    block_size: int
    num_blocks: int
    """Number of KV blocks; 0 if the model does not fit."""
    windows: tuple[int | None, ...]
    """Sliding window of each group of layers that has blocks of its own; None: no window."""
    num_tokens: int
    """Number of tokens that fit, in requests of the maximum length."""
    num_full_requests: int
    """Number of requests of the maximum length that fit."""


@dataclass(frozen=True)
class ModelInfo:
    """Description of a model, and of how it fits the devices here."""

    path: str
    """A folder, or a GGUF file."""
    format: str
    """``safetensors``, or ``GGUF`` and how its numbers are stored; and how they are quantized."""
    architecture: str
    num_layers: int
    num_sliding_layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    traits: dict[str, str]
    """Unusual options: what they concern -> what they are."""
    num_parameters: int
    weight_bytes: dict[str, int]
    """Size of the weights, by dtype."""
    active_weight_bytes: dict[str, int]
    """Size of the weights that a single token is computed with, by dtype. In a mixture of experts,
    that is less than all of them."""
    checkpoint_dtype: str
    max_model_len: int
    chat_template: bool
    devices: tuple[DeviceFit, ...]


@field_options(EngineConfig, without={field.name for field in fields(EngineConfig)} - OPTIONS)
@click.command(cls=SectionedCommand, short_help="Describe a model, and how it fits this machine.")
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with sizes in bytes.")
@click.pass_context
def info(ctx: click.Context, /, model: str | None, as_json: bool, **_: Any) -> None:
    """Describe MODEL (default: the built-in one), and how it fits this machine."""
    config = EngineConfig(model=model or str(DEMO_MODEL_DIR), **given_options(ctx, EngineConfig))
    found = gather(config)
    click.echo(json.dumps(asdict(found), indent=2) if as_json else "\n".join(_render(found)))


def gather(config: EngineConfig) -> ModelInfo:
    """Describe a checkpoint without reading its weights, and how it fits this machine.

    Raises:
        ValueError: as when the engine is started with ``config``.
    """
    from minimal_vllm.engine.sizing import choose_model_len, read_model_config

    checkpoint = resolve_model(config.model, config.revision, config.download_dir, weights=False)
    model = read_model_config(config, checkpoint)
    max_model_len = choose_model_len(config, model)
    return ModelInfo(
        path=str(checkpoint),
        format=_format(checkpoint, model),
        architecture=model.architecture,
        num_layers=model.num_layers,
        num_sliding_layers=sum(layer.window is not None for layer in model.layers),
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        vocab_size=model.vocab_size,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        traits=describe_traits(model),
        num_parameters=model.num_parameters,
        weight_bytes={dtype: weight_bytes(model, dtype) for dtype in DTYPE_BYTES},
        active_weight_bytes={
            dtype: weight_bytes(model, dtype) - round(idle_expert_bytes(model, dtype, 1))
            for dtype in DTYPE_BYTES
        },
        checkpoint_dtype=model.dtype,
        max_model_len=max_model_len,
        chat_template=_has_chat_template(config, checkpoint),
        devices=tuple(
            _fit(name, config, divide(model, config.tensor_parallel_size), max_model_len)
            for name in _device_names(config)
        ),
    )


def _format(checkpoint: Path, model: ModelConfig) -> str:
    gguf = find_gguf(checkpoint)
    stored = f"GGUF ({describe_types(read_gguf(gguf))})" if gguf else "safetensors"
    quantized = model.quantization
    return f"{stored}, {quantized.format.name} ({quantized.method})" if quantized else stored


def _has_chat_template(config: EngineConfig, checkpoint: Path) -> bool:
    if not (checkpoint / "tokenizer.json").exists() and find_gguf(checkpoint) is None:
        return False
    from minimal_vllm.text.chat_template import load_chat_template
    from minimal_vllm.text.tokenizer import Tokenizer

    return load_chat_template(Tokenizer(checkpoint), config.chat_template) is not None


def _device_names(config: EngineConfig) -> list[str]:
    """Return the devices here that the configuration can run on."""
    import torch

    has_gpu = torch.cuda.is_available() and config.tensor_parallel_size <= torch.cuda.device_count()
    return ["cpu", "cuda"] if has_gpu else ["cpu"]


def _fit(name: str, config: EngineConfig, model: ModelConfig, max_model_len: int) -> DeviceFit:
    """Return what the engine would decide on a device that has loaded the weights."""
    from minimal_vllm.cache.memory import gpu_free, measure_memory
    from minimal_vllm.engine import sizing
    from minimal_vllm.engine.backends import backend_name
    from minimal_vllm.engine.draft import find_draft

    device = sizing.choose_device(name)
    draft = find_draft(config, model, None, max_model_len)
    memory = measure_memory(device, gpu_free(device)).shared_by(model.ranks)
    dtype = sizing.choose_dtype(config.dtype, model.dtype, device)
    dtype_name = str(dtype).removeprefix("torch.")
    draft_config = None if draft is None else draft.config
    draft_weights = draft_block = draft_token = 0
    if draft is not None:
        draft_weights = draft.weight_bytes(dtype_name)
        draft_block = sizing.draft_block_bytes(config, draft.config, dtype)
        draft_token = draft.kv_bytes_per_token(dtype_name)
    weights = weight_bytes(model, dtype_name) + draft_weights
    loaded = replace(
        memory, free=memory.free - weights, used_by_process=memory.used_by_process + weights
    )
    batched_tokens = sizing.choose_batched_tokens(
        config, max_model_len, memory.device_type, memory.total
    )
    groups = sizing.choose_groups(model, max_model_len)
    limits = SchedulerConfig(
        max_model_len=max_model_len,
        max_num_batched_tokens=batched_tokens,
        max_num_seqs=config.max_num_seqs,
        block_size=config.block_size,
        windows=groups.windows,
    )
    try:
        num_blocks = sizing.choose_num_blocks(
            config, model, groups, dtype, loaded, batched_tokens, draft_config
        )
    except ValueError:  # none fit
        num_blocks = 0
    return DeviceFit(
        device=name,
        num_ranks=model.ranks,
        dtype=dtype_name,
        attention_backend=backend_name(config.attention_backend, device),
        memory=memory.total,
        free_memory=memory.free,
        weights=weights,
        draft_weights=draft_weights,
        kv_per_token=model.kv_bytes_per_token(dtype_name) + draft_token,
        kv_per_block=sizing.kv_block_bytes(config, model, groups, dtype) + draft_block,
        block_size=config.block_size,
        num_blocks=num_blocks,
        windows=groups.windows,
        num_tokens=sizing.count_fitting_tokens(limits, num_blocks),
        num_full_requests=num_blocks // limits.blocks_held_for(max_model_len),
    )


def _render(found: ModelInfo) -> Iterator[str]:
    sliding = f", {found.num_sliding_layers} with a sliding window" * bool(found.num_sliding_layers)
    is_sparse = found.active_weight_bytes != found.weight_bytes
    rows = {
        "Model": found.path,
        "Format": found.format,
        "Architecture": found.architecture,
        "Layers": f"{found.num_layers}{sliding}",
        "Sizes": f"hidden {found.hidden_size:,}, MLP {found.intermediate_size:,}, "
        f"vocabulary {found.vocab_size:,}",
        "Attention": f"{found.num_heads} heads of {found.head_dim}, {found.num_kv_heads} KV heads",
        **found.traits,
        "Parameters": f"{found.num_parameters:,} (checkpoint in {found.checkpoint_dtype})",
        "Weights": _sizes(found.weight_bytes),
        **({"For one token": _sizes(found.active_weight_bytes)} if is_sparse else {}),
        "Context": f"{found.max_model_len:,} tokens",
        "Chat template": "yes" if found.chat_template else "no",
    }
    for label, value in rows.items():
        yield _row(label, value)
    for fit in found.devices:
        yield from _render_fit(fit, found.max_model_len)


def _render_fit(fit: DeviceFit, max_model_len: int) -> Iterator[str]:
    kind = "GPU memory" if fit.device == "cuda" else "RAM"
    yield ""
    ranks = f"in {fit.num_ranks} processes, each " if fit.num_ranks > 1 else ""
    memory = f"{_size(fit.memory)} of {kind}, {_size(fit.free_memory)} free"
    yield f"On {fit.device}, {ranks}with {memory}:"
    if fit.num_ranks > 1:
        yield _row("Weights", f"{_size(fit.weights)} in each")
    yield _row("Runs", f"in {fit.dtype}, with {fit.attention_backend} attention")
    yield _row(
        "KV cache",
        f"{_size(fit.kv_per_token)} a token, "
        f"{_size(fit.kv_per_block)} a block of {fit.block_size} tokens"
        + " in one group of layers"
        * any(fit.windows),
    )
    if fit.draft_weights:
        yield _row("Draft model", f"weights of {_size(fit.draft_weights)}; its KV is counted above")
    if any(fit.windows):
        yield _row("Groups", _describe_groups(fit.windows))
    if not fit.num_blocks:
        yield _row("Fits", "not at all")
        return
    yield _row(
        "Fits",
        f"{fit.num_tokens:,} tokens ({fit.num_blocks:,} blocks): {fit.num_full_requests:,} "
        f"requests of {max_model_len:,} tokens",
    )


def _describe_groups(windows: Sequence[int | None]) -> str:
    """Return which groups of layers have blocks of their own, as text."""
    kinds = ", ".join(
        f"{count} with a window of {window:,} tokens" if window else f"{count} without a window"
        for window, count in Counter(windows).items()
    )
    return f"{len(windows)} groups of layers, each with its own blocks: {kinds}"


def _row(label: str, value: str) -> str:
    return f"{label:<14}{value}"


def _sizes(by_dtype: dict[str, int]) -> str:
    return ", ".join(f"{_size(size)} in {dtype}" for dtype, size in by_dtype.items())


def _size(num_bytes: float) -> str:
    """Format a number of bytes with three digits and a binary unit."""
    units = ["B", "KiB", "MiB", "GiB"]
    while num_bytes >= 1000 and len(units) > 1:
        num_bytes /= 1024
        del units[0]
    return f"{num_bytes:.3g} {units[0]}"
