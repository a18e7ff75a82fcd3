"""Which runner computes the steps, and whether a step is launched before the last one is done."""

import torch

from minimal_vllm.config import EngineConfig, SchedulerConfig
from minimal_vllm.device.properties import num_sms
from minimal_vllm.engine.backends import backend_name
from minimal_vllm.plugin import make_part
from minimal_vllm.runner.interface import CachedModel, Runner
from minimal_vllm.runner.plain import PlainRunner
from minimal_vllm.sampling.sampler import Sampler, sample


def runs_ahead(config: EngineConfig, device: torch.device) -> bool:
    """Return whether a step is launched before the one before it is done.

    This needs a runner that leaves the last tokens on the GPU. With a custom scheduler, which may
    not know of pending tokens, it has to be asked for.

    Raises:
        ValueError: it is asked for, and not possible here.
    """
    possible = _uses_own_kernels(config, device)
    if config.async_scheduling and not possible:
        raise ValueError(
            "async_scheduling needs a GPU, attention_backend='triton' and the built-in sampler"
        )
    if config.async_scheduling is None:
        return possible and config.scheduler is None
    return config.async_scheduling


def _uses_own_kernels(config: EngineConfig, device: torch.device) -> bool:
    """Return whether steps are made of our kernels, from the first layer to the sampled tokens."""
    return backend_name(config.attention_backend, device) == "triton" and config.sampler is None


def make_runner(
    config: EngineConfig, limits: SchedulerConfig, model: CachedModel, *, progress: bool
) -> Runner:
    """Make the fastest runner for a model, and record its graphs.

    Args:
        config: the user's choices.
        limits: limits of the scheduler.
        model: what the runner runs on.
        progress: whether to show progress bars.

    Raises:
        ValueError: the user's sampler does not fit.
    """
    if not _uses_own_kernels(config, model.device):
        sampler = sample if config.sampler is None else make_part(config.sampler, Sampler)
        return PlainRunner(model, sampler)
    return _make_cuda_runner(config, limits, model, progress=progress)


def _make_cuda_runner(
    config: EngineConfig, limits: SchedulerConfig, model: CachedModel, *, progress: bool
) -> Runner:
    # Triton comes with PyTorch for CUDA, and only with that.
    from minimal_vllm.attention.triton_backend import TritonAttention
    from minimal_vllm.runner.capture import GraphCapture, compile_side_by_side
    from minimal_vllm.runner.cuda import CudaRunner
    from minimal_vllm.runner.graphs import Graphs
    from minimal_vllm.runner.shapes import max_recorded_tokens
    from minimal_vllm.runner.step import GpuStep
    from minimal_vllm.runner.table import RowTable

    if not isinstance(model.attention, TritonAttention):
        raise TypeError("a CUDA runner needs a model with Triton attention")
    table = RowTable(limits.max_num_seqs, limits.blocks_for(limits.max_model_len), model.device)
    step = GpuStep(model, model.attention, table)
    if config.enforce_eager:
        return CudaRunner(step, graphs=None)
    num_parameters = sum(each.numel() for each in model.decoder.parameters())
    graphs = Graphs(
        step,
        GraphCapture(),
        max_num_seqs=limits.max_num_seqs,
        max_tokens=max_recorded_tokens(
            num_parameters, limits.max_num_batched_tokens, num_sms(model.device)
        ),
        cascade=config.cascade_attention,
    )
    compile_side_by_side(graphs.small_steps())
    graphs.record(progress=progress)
    return CudaRunner(step, graphs)
