"""From a configuration to an engine that is ready to step."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from minimal_vllm.attention.backend import backend_name, choose_backend
from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import LRU
from minimal_vllm.cache.kv_cache import LayerCache, allocate_kv_cache
from minimal_vllm.cache.memory import (
    gpu_free,
    measure_memory,
    told_plainly_if_out_of_memory,
)
from minimal_vllm.config import EngineConfig, SchedulerConfig
from minimal_vllm.engine.admission import Admission, ModelLimits
from minimal_vllm.engine.engine import Engine
from minimal_vllm.engine.output_processor import OutputProcessor
from minimal_vllm.engine.parts import make_pool, make_scheduler
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.engine.sizing import (
    check_weights_fit,
    choose_batched_tokens,
    choose_device,
    choose_dtype,
    choose_model_len,
    choose_num_blocks,
    choose_scheduler_config,
)
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.decoder import Decoder
from minimal_vllm.model.generation_config import GenerationConfig
from minimal_vllm.model.hub import find_folder, resolve_model
from minimal_vllm.model.loader import init_random, load_model
from minimal_vllm.plugin import make_part
from minimal_vllm.runner.interface import ModelState, Runner
from minimal_vllm.runner.plain import PlainRunner
from minimal_vllm.sampling.grammar import GrammarCompiler
from minimal_vllm.sampling.sampler import Sampler, sample
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.text.tokenizer import Tokenizer
from minimal_vllm.trace.step_record import StepObserver

if TYPE_CHECKING:
    from minimal_vllm.runner.cuda import StepGraphs
    from minimal_vllm.runner.table import RowTable


@dataclass(frozen=True)
class ModelFiles:
    """What a checkpoint's folder says beside the weights."""

    folder: Path
    config: ModelConfig
    generation_config: GenerationConfig
    tokenizer: Tokenizer | None

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The tokens that end a text, by any of the files."""
        named = self.tokenizer.eos_token_id if self.tokenizer else None
        own = frozenset(self.generation_config.eos_token_ids)
        return own if named is None else own | {named}


@dataclass(frozen=True)
class BuiltEngine:
    """An engine, and what was decided on the way to it."""

    engine: Engine
    files: ModelFiles
    scheduler_config: SchedulerConfig
    num_blocks: int
    caches: list[LayerCache]
    device: torch.device
    dtype: torch.dtype
    grammars: GrammarCompiler | None
    """The engine's; None without a tokenizer."""


def read_model_files(config: EngineConfig) -> ModelFiles:
    """Find the model's folder, downloading it if need be, and read all but the weights.

    Raises:
        ValueError: naming the file that is missing or wrong.
    """
    folder = resolve_model(config.model, config.revision, config.download_dir)
    model_config = ModelConfig.from_folder(folder)
    return ModelFiles(
        folder,
        model_config,
        GenerationConfig.from_folder(folder, model_config),
        None if config.skip_tokenizer_init else _load_tokenizer(config, folder),
    )


def _load_tokenizer(config: EngineConfig, model_folder: Path) -> Tokenizer:
    if config.tokenizer is None:
        return Tokenizer(model_folder)
    return Tokenizer(find_folder(config.tokenizer, None, config.download_dir, weights=False))


@told_plainly_if_out_of_memory()
def build_engine(
    config: EngineConfig, *, observers: Sequence[StepObserver] = (), progress: bool = False
) -> BuiltEngine:
    """Read the model, size the KV cache by the memory that is left, and put the engine together.

    Args:
        config: the user's choices.
        observers: called with a record of each step.
        progress: show a bar while the weights are loaded.

    Raises:
        ValueError: a choice that can't be had, a broken checkpoint, or too little memory.
    """
    device = choose_device(config.device)
    files = read_model_files(config)
    dtype = choose_dtype(config.dtype, files.config.dtype, device)
    model_len = choose_model_len(config, files.config)

    free_at_start = gpu_free(device)
    check_weights_fit(files.config, dtype, measure_memory(device))
    model = _load(config, files, dtype, device, model_len, progress)
    backend = choose_backend(
        config.attention_backend,
        files.config,
        config.block_size,
        dtype,
        device,
        config.max_num_seqs,
    )
    memory = measure_memory(device, free_at_start)
    batched_tokens = choose_batched_tokens(config, model_len, memory.device_type, memory.total)
    num_blocks = choose_num_blocks(config, files.config, dtype, memory, batched_tokens)
    scheduler_config = choose_scheduler_config(config, model_len, batched_tokens, num_blocks)

    caches = allocate_kv_cache(
        num_layers=files.config.num_layers,
        num_blocks=num_blocks,
        num_kv_heads=files.config.num_kv_heads,
        block_size=config.block_size,
        head_dim=files.config.head_dim,
        dtype=dtype,
        device=device,
    )
    scheduler = make_scheduler(config, scheduler_config, make_pool(config, num_blocks))
    limits = ModelLimits(
        files.config.vocab_size,
        files.eos_token_ids,
        config.max_logprobs,
    )
    state = ModelState(model, backend, caches, config.block_size, device)
    runner = _choose_runner(config, scheduler_config, state, progress)
    if device.type == "cuda":
        _warm_up(runner, scheduler_config, num_blocks, limits)
    admission = Admission(limits, files.tokenizer, config.seed)
    engine = Engine(
        scheduler,
        runner,
        admission,
        OutputProcessor(files.tokenizer),
        observers,
        async_scheduling=runs_ahead(config, device),
    )
    return BuiltEngine(
        engine,
        files,
        scheduler_config,
        num_blocks,
        caches,
        device,
        dtype,
        admission.grammars,
    )


def _load(
    config: EngineConfig,
    files: ModelFiles,
    dtype: torch.dtype,
    device: torch.device,
    model_len: int,
    progress: bool,
) -> Decoder:
    if config.load_format == "dummy":
        model = Decoder(files.config, dtype, device, model_len)
        init_random(model, config.seed)
        return model
    return load_model(
        files.folder, files.config, dtype, device, max_positions=model_len, progress=progress
    )


def runs_ahead(config: EngineConfig, device: torch.device) -> bool:
    """Whether a step is launched before the one before it is done.

    Only with a runner that leaves last tokens on the GPU. A scheduler of the user's may not know of
    pending tokens, so it has to be asked for.

    Raises:
        ValueError: it is asked for, and can't be had.
    """
    possible = _runs_on_own_kernels(config, device)
    if config.async_scheduling and not possible:
        raise ValueError(
            "async_scheduling needs a GPU, attention_backend='triton' and the built-in sampler"
        )
    if config.async_scheduling is None:
        return possible and config.scheduler is None
    return config.async_scheduling


def _runs_on_own_kernels(config: EngineConfig, device: torch.device) -> bool:
    """Whether steps, from the first layer to the sampled tokens, are made of our kernels."""
    return backend_name(config.attention_backend, device) == "triton" and config.sampler is None


def _choose_runner(
    config: EngineConfig, limits: SchedulerConfig, state: ModelState, progress: bool
) -> Runner:
    if not _runs_on_own_kernels(config, state.device):
        sampler = sample if config.sampler is None else make_part(config.sampler, Sampler)
        return PlainRunner(state, sampler)
    # Triton comes with PyTorch for CUDA, and only with that.
    from minimal_vllm.runner.cuda import CudaRunner
    from minimal_vllm.runner.table import RowTable

    table = RowTable(limits.max_num_seqs, limits.blocks_for(limits.max_model_len), state.device)
    graphs = None if config.enforce_eager else _record(config, limits, state, table, progress)
    return CudaRunner(state, table, graphs)


def _record(
    config: EngineConfig,
    limits: SchedulerConfig,
    state: ModelState,
    table: "RowTable",
    progress: bool,
) -> "StepGraphs":
    from minimal_vllm.runner.cuda import StepGraphs
    from minimal_vllm.runner.cuda_graph import DecodeGraphs, GraphMemory
    from minimal_vllm.runner.mixed_graph import MixedGraphs
    from minimal_vllm.runner.recording import Recorder, compile_side_by_side, most_recorded_tokens

    cascade, recorder = config.cascade_attention, Recorder()
    memory = GraphMemory(state, table, limits.max_num_seqs, cascade=cascade)
    num_parameters = sum(each.numel() for each in state.model.parameters())
    most_tokens = most_recorded_tokens(num_parameters, limits.max_num_batched_tokens)
    graphs = StepGraphs(DecodeGraphs(memory, recorder), MixedGraphs(memory, recorder, most_tokens))
    compile_side_by_side([*graphs.mixed.small_steps(), *graphs.decode.small_steps()])
    graphs.mixed.record(progress=progress)  # first: all others fit into the memory of the largest
    graphs.decode.record(progress=progress)
    return graphs


def _warm_up(runner: Runner, config: SchedulerConfig, num_blocks: int, limits: ModelLimits) -> None:
    """Let kernels be compiled, and libraries prepare, before the first user waits for it."""
    engine = Engine(
        Scheduler(config, BlockPool(num_blocks, LRU())),
        runner,
        Admission(limits, None, seed=0),
        OutputProcessor(None),
    )
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    # Alone, with others, and launched by the CPU: with prompts as the library wants them, and not.
    largest_step = [1024, 1030] + [900] * (config.max_num_batched_tokens // 900)
    for lengths in ([32], [2] * 5, largest_step):
        for index, length in enumerate(lengths):
            prompt = [0] * min(length, config.max_model_len - 1)
            # Salted, or all but the first would be found in the cache.
            engine.add_request(str(index), prompt, params, cache_salt=str(index))
        while engine.has_unfinished_requests:
            engine.step()
