"""Choosing the modules, the attention and the runner that a model runs on.

Only ``TritonAttention`` can be recorded in CUDA graphs. With any other attention, ``PlainRunner``
computes the steps.
"""

from dataclasses import replace

import torch

from minimal_vllm.attention.interface import Attention
from minimal_vllm.attention.reference import ReferenceAttention
from minimal_vllm.attention.tiled import TiledAttention
from minimal_vllm.config import EngineConfig, SchedulerConfig
from minimal_vllm.device.properties import num_sms
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.cpu_modules import with_fewer_calls
from minimal_vllm.model.layers import PLAIN_MODULES, Modules
from minimal_vllm.model.packed_linear import PACKED_MODULES, can_pack
from minimal_vllm.model.quantization.convert import Layouts, quantized
from minimal_vllm.model.quantization.int8 import PackedInt8Weight, can_multiply_int8
from minimal_vllm.model.quantization.int8_amx import AmxInt8Weight, can_multiply_tiles
from minimal_vllm.model.quantization_config import Int8OnTheFly, Mxfp4, Quantization
from minimal_vllm.model.scripted_layers import ScriptedLayers
from minimal_vllm.plugin import Part, make_part, part_name
from minimal_vllm.runner.interface import CachedModel, Runner
from minimal_vllm.runner.plain import PlainRunner
from minimal_vllm.runner.shapes import max_places
from minimal_vllm.sampling.sampler import Sampler, sample
from minimal_vllm.speculation.draft_model import DraftModel
from minimal_vllm.speculation.runner import SpeculatingRunner

CPU_LAYOUTS = Layouts(int8=AmxInt8Weight if can_multiply_tiles() else PackedInt8Weight)
"""Classes of quantized weights on a CPU with AVX2."""


def backend_name(name: Part, device: torch.device) -> str:
    """Return ``name`` itself, or for ``auto`` the fastest implementation on the device."""
    if name != "auto":
        return part_name(name)
    return "triton" if device.type == "cuda" else "tiled"


def choose_modules(
    name: Part, quantization: Quantization | None, dtype: torch.dtype, device: torch.device
) -> Modules:
    """Return the modules to build a decoder from; plain ones beside reference attention.

    Args:
        name: value of ``EngineConfig.attention_backend``.
        quantization: how the model's weights are quantized, if they are.
        dtype: dtype of the model.
        device: device of the model.

    Raises:
        ValueError: the Triton kernels are asked for, but the device is not a GPU; or it is one, but
            the quantization is for CPUs.
    """
    backend, layouts = backend_name(name, device), Layouts()
    if backend != "triton":
        can_be_packed = device.type == "cpu" and backend != "reference" and can_pack(dtype)
        is_dense = quantization is None or isinstance(quantization.format, Mxfp4)
        is_packed = can_be_packed and is_dense  # the projections are
        modules = PACKED_MODULES if is_packed else PLAIN_MODULES
        if device.type == "cpu" and backend == "tiled":
            modules = replace(with_fewer_calls(modules), layers=ScriptedLayers)
            layouts = CPU_LAYOUTS if can_multiply_int8() else layouts
    else:
        _check_gpu(device)
        if quantization is not None and isinstance(quantization.format, Int8OnTheFly):
            raise ValueError("quantization 'int8' is for CPUs: on a GPU, use 'fp8'")
        # Triton comes with PyTorch for CUDA, and only with that.
        from minimal_vllm.model.triton_modules import TRITON_MODULES
        from minimal_vllm.model.triton_weights import TRITON_LAYOUTS

        modules, layouts = TRITON_MODULES, TRITON_LAYOUTS
    return quantized(modules, quantization, layouts)


def choose_attention(
    config: EngineConfig, model: ModelConfig, dtype: torch.dtype, device: torch.device
) -> Attention:
    """Make the attention of a model or of its draft: a built-in implementation, or the user's.

    Args:
        config: the user's configuration.
        model: hyperparameters of the model.
        dtype: dtype of queries and KV cache.
        device: device of queries and KV cache.

    Raises:
        ValueError: the implementation can't run on the device, or the user's class doesn't have the
            interface ``Attention``.
    """
    match backend_name(config.attention_backend, device):
        case "reference":
            return ReferenceAttention(device)
        case "tiled":
            return TiledAttention(config.block_size, model.num_kv_heads, model.head_dim, device)
        case "triton":
            _check_gpu(device)
            from minimal_vllm.attention.triton_backend import TritonAttention

            guesses, most = config.speculative_config, config.max_num_seqs
            return TritonAttention(
                windows=frozenset(layer.window for layer in model.layers),
                num_heads=model.num_heads,
                num_kv_heads=model.num_kv_heads,
                head_dim=model.head_dim,
                max_num_seqs=most,
                num_sms=num_sms(device),
                device=device,
                dtype=dtype,
                plain=model.has_plain_attention,
                num_layers=sum(layer.window is None for layer in model.layers),
                max_guessed=max_places(most, guesses.max_guesses) if guesses else 0,
            )
        case _:
            return make_part(config.attention_backend, Attention, device)


def _check_gpu(device: torch.device) -> None:
    if device.type != "cuda":
        raise ValueError(
            "attention_backend='triton' needs an NVIDIA GPU: set it to 'tiled' or 'auto'"
        )


def runs_ahead(config: EngineConfig, device: torch.device) -> bool:
    """Return whether each step is launched before the previous one has finished.

    This requires a runner that keeps the last tokens on the GPU. With a custom scheduler, it is off
    by default, because the scheduler would have to handle pending tokens.

    Raises:
        ValueError: ``async_scheduling`` is set, but not possible here.
    """
    possible = uses_own_kernels(config, device)
    if config.async_scheduling and not possible:
        raise ValueError(
            "async_scheduling needs a GPU, attention_backend='triton' and the built-in sampler"
        )
    if config.async_scheduling is None:
        return possible and config.scheduler is None
    return config.async_scheduling


def uses_own_kernels(config: EngineConfig, device: torch.device) -> bool:
    """Return whether our own kernels compute the whole step, from the first layer to sampling."""
    return backend_name(config.attention_backend, device) == "triton" and config.sampler is None


def prepare(config: EngineConfig, device: torch.device) -> None:
    """Start Triton's compiler in the background, if needed, so that it is ready with the files."""
    if uses_own_kernels(config, device):
        # Triton comes with PyTorch for CUDA, and only with that.
        from minimal_vllm.runner.compile import start_compiler

        start_compiler()


def make_runner(
    config: EngineConfig,
    limits: SchedulerConfig,
    model: CachedModel,
    draft: DraftModel | None = None,
    *,
    progress: bool,
    lazy: bool = False,
) -> Runner:
    """Make the fastest runner that the configuration allows, and record its CUDA graphs.

    Args:
        config: the user's configuration.
        limits: limits of the scheduler.
        model: decoder, attention and KV cache.
        draft: the draft model of speculative decoding, if there is one.
        progress: whether to show progress bars.
        lazy: whether the runner may leave a part of its preparation; see ``HasIdleWork``.

    Raises:
        ValueError: the user's sampler doesn't have the interface ``Sampler``.
    """
    if not uses_own_kernels(config, model.device):
        sampler = sample if config.sampler is None else make_part(config.sampler, Sampler)
        if config.speculative_config is not None:
            return SpeculatingRunner(model, sampler, draft)
        return PlainRunner(model, sampler)
    # Triton comes with PyTorch for CUDA, and only with that.
    from minimal_vllm.engine.gpu import make_cuda_runner

    return make_cuda_runner(config, limits, model, draft, progress=progress, lazy=lazy)
