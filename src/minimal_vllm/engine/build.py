"""Building an engine from its configuration."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread

import torch

from minimal_vllm.attention.interface import Attention
from minimal_vllm.cache.kv_cache import LayerCache, allocate_kv_cache
from minimal_vllm.cache.layer_groups import LayerGroups
from minimal_vllm.cache.memory import (
    DeviceMemory,
    gpu_free,
    measure_memory,
    out_of_memory_as_value_error,
)
from minimal_vllm.config import EngineConfig, SchedulerConfig
from minimal_vllm.device.huge_pages import DELAY, use_huge_pages
from minimal_vllm.device.properties import num_sms
from minimal_vllm.engine.admission import Admission, ModelLimits
from minimal_vllm.engine.backends import (
    choose_attention,
    choose_modules,
    make_runner,
    prepare,
    runs_ahead,
    uses_own_kernels,
)
from minimal_vllm.engine.decide import Decide, alone
from minimal_vllm.engine.draft import find_draft, make_draft_model
from minimal_vllm.engine.eagle import EagleFiles, load_head
from minimal_vllm.engine.engine import Engine
from minimal_vllm.engine.output_processor import OutputProcessor
from minimal_vllm.engine.parts import make_pool, make_scheduler, watch_cache
from minimal_vllm.engine.sizing import (
    check_weights_fit,
    choose_batched_tokens,
    choose_device,
    choose_dtype,
    choose_groups,
    choose_kv_dtype,
    choose_model_len,
    choose_num_blocks,
    choose_scheduler_config,
    read_model_config,
)
from minimal_vllm.engine.warm_up import warm_up
from minimal_vllm.engine.watched_experts import ExpertReporter, ExpertTally, make_tally
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.decoder import Decoder
from minimal_vllm.model.divided_config import divide
from minimal_vllm.model.divided_modules import divided
from minimal_vllm.model.divided_weights import Share
from minimal_vllm.model.eagle import EagleHead
from minimal_vllm.model.eagle_config import EagleConfig
from minimal_vllm.model.generation_config import GenerationConfig
from minimal_vllm.model.hub import find_checkpoint, resolve_model
from minimal_vllm.model.kv_scales import use_kv_scales
from minimal_vllm.model.loader import init_random, load_model
from minimal_vllm.model.network import Network
from minimal_vllm.model.ranks import ALONE, Ranks
from minimal_vllm.runner.idle_work import HasIdleWork
from minimal_vllm.runner.in_ranks import RankRunner
from minimal_vllm.runner.interface import CachedModel, Runner
from minimal_vllm.runner.shapes import max_admitted
from minimal_vllm.sampling.grammar import GrammarCompiler
from minimal_vllm.speculation.draft_model import DraftModel
from minimal_vllm.text.tokenizer import Tokenizer
from minimal_vllm.trace.step_record import Observer

WORTH_HUGE_PAGES = 32_000_000
"""Minimum number of a model's parameters for huge pages on a CPU: fewer fit into caches."""


@dataclass(frozen=True)
class ModelFiles:
    """Contents of a checkpoint's files, apart from the weights."""

    checkpoint: Path
    """A folder, or a GGUF file."""
    config: ModelConfig
    generation_config: GenerationConfig
    tokenizer: Tokenizer | None

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end the output, according to any of the files."""
        named = self.tokenizer.eos_token_id if self.tokenizer else None
        own = frozenset(self.generation_config.eos_token_ids)
        return own if named is None else own | {named}


@dataclass(frozen=True)
class BuiltEngine:
    """An engine, and the choices that were made to build it."""

    engine: Engine
    files: ModelFiles
    scheduler_config: SchedulerConfig
    num_blocks: int
    """Number of KV blocks in the pool."""
    model: CachedModel
    """Decoder, attention and KV cache."""
    device: torch.device
    dtype: torch.dtype
    grammars: GrammarCompiler | None
    """Compiler of grammars for structured outputs; None without a tokenizer."""
    idle_work: Iterator[None]
    """Preparation left for idle time. Each item does a piece of it; steps may run between two."""

    @property
    def caches(self) -> list[LayerCache]:
        """KV cache of each layer."""
        return self.model.caches

    @property
    def num_experts(self) -> int:
        """Number of experts of a layer that has a mixture of them; 0 if no layer has."""
        experts = self.files.config.experts
        return experts.count if experts else 0


@dataclass(frozen=True)
class _LoadedModel:
    """A model on its device, and the memory that is left there."""

    decoder: Decoder
    attention: Attention
    memory: DeviceMemory
    """Memory of the device, measured after the weights were loaded."""
    draft: Network | None
    """The draft model or head that guesses, if there is one."""

    @property
    def draft_config(self) -> ModelConfig | EagleConfig | None:
        """Hyperparameters of the draft model or head."""
        if isinstance(self.draft, EagleHead):
            return self.draft.eagle
        return None if self.draft is None else self.draft.config


def read_model_files(config: EngineConfig) -> ModelFiles:
    """Find the model's files, downloading them if necessary, and read all but the weights.

    Raises:
        ValueError: a file is missing or invalid. The message names it.
    """
    checkpoint = resolve_model(config.model, config.revision, config.download_dir)
    model_config = read_model_config(config, checkpoint)
    return ModelFiles(
        checkpoint,
        model_config,
        _read_generation_config(config, checkpoint, model_config),
        None if config.skip_tokenizer_init else _load_tokenizer(config, checkpoint),
    )


def _read_generation_config(
    config: EngineConfig, checkpoint: Path, model_config: ModelConfig
) -> GenerationConfig:
    own = GenerationConfig.from_checkpoint(checkpoint, model_config)
    if config.generation_config == "vllm":
        own = replace(own, sampling={})
    return own.overridden(config.override_generation_config or {})


def _load_tokenizer(config: EngineConfig, checkpoint: Path) -> Tokenizer:
    if config.tokenizer is None:
        return Tokenizer(checkpoint)
    return Tokenizer(find_checkpoint(config.tokenizer, None, config.download_dir, weights=False))


@out_of_memory_as_value_error()
def build_engine(
    config: EngineConfig,
    *,
    observers: Sequence[Observer] = (),
    progress: bool = False,
    ranks: Ranks = ALONE,
    make_engine: Callable[..., Engine] = Engine,
    decide: Decide = alone,
    lazy: bool = False,
) -> BuiltEngine:
    """Load the model, size the KV cache to the memory that is left, and assemble the engine.

    Args:
        config: the user's configuration.
        observers: functions that are called with a record of each step.
        progress: whether to show progress bars while weights are loaded and graphs recorded.
        ranks: this rank, and the others that compute the model with it.
        make_engine: makes the engine from the arguments of ``Engine``.
        decide: makes a decision that depends on the time, for all ranks.
        lazy: whether to leave preparation that can wait; see ``BuiltEngine.idle_work``.

    Raises:
        ValueError: a setting is impossible here, the checkpoint is damaged, or memory is too small.
    """
    # The order matters: later stages depend on earlier choices, and on the memory that is left.
    device = choose_device(config.device)
    prepare(config, device)
    files = read_model_files(config)
    dtype = choose_dtype(config.dtype, files.config.dtype, device)
    model_len = choose_model_len(config, files.config)

    tally = make_tally(files.config, device, observers)
    loaded = _load(config, files, dtype, device, model_len, ranks, tally, progress=progress)
    groups = choose_groups(files.config, model_len)
    num_blocks, scheduler_config = _size(config, loaded, groups, model_len, ranks)
    model = _add_cache(loaded, config, groups, num_blocks)
    draft = make_draft_model(config, scheduler_config, model, loaded.draft, num_blocks)
    runner, rest = _make_runner(
        config, scheduler_config, model, draft, ranks, progress=progress, lazy=lazy
    )
    limits = ModelLimits(files.config.vocab_size, files.eos_token_ids, config.max_logprobs)
    if device.type == "cuda":
        warm_up(runner, scheduler_config, num_blocks, limits)
    admission = Admission(limits, files.tokenizer, config.seed)
    pool = make_pool(config, num_blocks)
    watchers = [ExpertReporter(observers, tally)] if tally else observers
    on_gpu = uses_own_kernels(config, device)
    engine = make_engine(
        make_scheduler(
            config, scheduler_config, pool, limits.vocab_size, on_gpu=on_gpu, decide=decide
        ),
        runner,
        admission,
        OutputProcessor(files.tokenizer),
        [*watchers, *watch_cache(config, scheduler_config, pool)],
        async_scheduling=runs_ahead(config, device),
    )
    return BuiltEngine(
        engine, files, scheduler_config, num_blocks, model, device, dtype, admission.grammars, rest
    )


def _load(
    config: EngineConfig,
    files: ModelFiles,
    dtype: torch.dtype,
    device: torch.device,
    model_len: int,
    ranks: Ranks,
    tally: ExpertTally | None,
    *,
    progress: bool,
) -> _LoadedModel:
    """Check that the rank's weights fit, load them, and measure the memory that is left."""
    free_at_start = gpu_free(device)
    draft = find_draft(config, files.config, files.tokenizer, model_len)
    own = divide(files.config, ranks.count)
    check_weights_fit(own, dtype, measure_memory(device).shared_by(ranks.count))
    decoder = _load_decoder(
        config,
        files.checkpoint,
        files.config,
        dtype,
        device,
        model_len,
        ranks,
        tally=tally,
        progress=progress,
    )
    attention = choose_attention(config, own, dtype, device)
    draft_decoder: Network | None = None
    if isinstance(draft, EagleFiles):
        draft_decoder = load_head(config, draft, decoder, model_len)
    elif draft is not None:
        draft_decoder = _load_decoder(
            config, draft.checkpoint, draft.config, dtype, device, model_len, seed=config.seed + 1
        )
    memory = measure_memory(device, free_at_start).shared_by(ranks.count)
    if device.type == "cpu" and own.num_parameters >= WORTH_HUGE_PAGES:
        Thread(target=use_huge_pages, args=(DELAY,), name="huge pages", daemon=True).start()
    return _LoadedModel(decoder, attention, memory, draft_decoder)


def _load_decoder(
    config: EngineConfig,
    checkpoint: Path,
    model: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    model_len: int,
    ranks: Ranks = ALONE,
    *,
    seed: int | None = None,
    tally: ExpertTally | None = None,
    progress: bool = False,
) -> Decoder:
    """Load a rank's part of a network, or fill it with random weights if ``load_format`` says so.

    Args:
        config: the user's configuration.
        checkpoint: folder or file with the weights.
        model: hyperparameters of the whole network.
        dtype: see ``Decoder``.
        device: see ``Decoder``.
        model_len: number of positions.
        ranks: this rank and the others.
        seed: seed of random weights. Default: the engine's.
        tally: counts the experts that are used. None: they are not counted.
        progress: whether to show a progress bar.
    """
    own = divide(model, ranks.count)
    modules = choose_modules(config.attention_backend, own.quantization, dtype, device)
    if ranks.count > 1:
        modules = divided(modules, ranks, own.vocab_size)
    if tally is not None:
        modules = tally.watch(modules)
    if config.load_format == "dummy":
        decoder = Decoder(own, dtype, device, model_len, modules)
        init_random(decoder, config.seed if seed is None else seed)
        return decoder
    decoder = load_model(
        checkpoint,
        own,
        dtype,
        device,
        max_positions=model_len,
        modules=modules,
        share=Share(model, ranks.index) if ranks.count > 1 else None,
        progress=progress,
    )
    if config.kv_cache_dtype == "fp8":
        use_kv_scales(decoder, checkpoint)
    return decoder


def _size(
    config: EngineConfig,
    loaded: _LoadedModel,
    groups: LayerGroups,
    model_len: int,
    ranks: Ranks,
) -> tuple[int, SchedulerConfig]:
    """Return the number of KV blocks and the scheduler's limits, the same in all ranks."""
    own, memory = loaded.decoder.config, loaded.memory
    batched_tokens = choose_batched_tokens(config, model_len, memory.device_type, memory.total)
    num_blocks = choose_num_blocks(
        config, own, groups, loaded.decoder.dtype, memory, batched_tokens, loaded.draft_config
    )
    num_blocks = ranks.least(num_blocks)
    limits = choose_scheduler_config(config, groups, model_len, batched_tokens, num_blocks)
    if uses_own_kernels(config, loaded.decoder.device):
        num_parameters = round(own.expected_parameters(1))
        most = max_admitted(num_parameters, batched_tokens, num_sms(loaded.decoder.device))
        limits = replace(limits, max_admitted=most)
    return num_blocks, limits


def _add_cache(
    loaded: _LoadedModel, config: EngineConfig, groups: LayerGroups, num_blocks: int
) -> CachedModel:
    """Allocate the KV cache of a model."""
    decoder = loaded.decoder
    caches = allocate_kv_cache(
        groups=groups,
        num_blocks=num_blocks,
        num_kv_heads=decoder.config.num_kv_heads,
        block_size=config.block_size,
        head_dim=decoder.config.head_dim,
        dtype=choose_kv_dtype(config, decoder.dtype),
        device=decoder.device,
    )
    return CachedModel(decoder, loaded.attention, caches, groups, config.block_size, decoder.device)


def _make_runner(
    config: EngineConfig,
    limits: SchedulerConfig,
    model: CachedModel,
    draft: DraftModel | None,
    ranks: Ranks,
    *,
    progress: bool,
    lazy: bool,
) -> tuple[Runner, Iterator[None]]:
    """Make the runner of a rank; return it and its work for idle time."""
    runner = make_runner(config, limits, model, draft, progress=progress, lazy=lazy)
    rest = runner.idle_work() if isinstance(runner, HasIdleWork) else iter(())
    return (RankRunner(runner, ranks) if ranks.count > 1 else runner), rest
