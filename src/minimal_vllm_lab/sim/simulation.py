"""Simulation from a configuration to a report."""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.layer_groups import LayerGroups
from minimal_vllm.cache.memory import DeviceMemory
from minimal_vllm.config import EngineConfig, SchedulerConfig
from minimal_vllm.demo import DRAFT_MODEL_DIR, EAGLE_HEAD_DIR
from minimal_vllm.engine.draft_fit import check_draft_fits, check_eagle_fits
from minimal_vllm.engine.parts import make_pool, make_scheduler, make_speculating_scheduler
from minimal_vllm.engine.scheduler_interface import SchedulerInterface
from minimal_vllm.engine.sizing import (
    choose_batched_tokens,
    choose_groups,
    choose_model_len,
    choose_scheduler_config,
    count_fitting_blocks,
    draft_activations,
    estimate_activations,
    unpacked_bytes,
)
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.eagle_config import EagleConfig
from minimal_vllm.model.hub import resolve_model
from minimal_vllm.model.quantization_config import choose_quantization
from minimal_vllm.model.supported import DTYPE_BYTES
from minimal_vllm.model.weight_bytes import weight_bytes
from minimal_vllm.routing import ROUTERS
from minimal_vllm.speculation.draft_cache import DraftCache
from minimal_vllm.speculation.eagle_cache import EagleCache
from minimal_vllm.speculation.interface import EaglePlaceholders, Placeholders
from minimal_vllm.trace.step_record import Observer
from minimal_vllm_lab.sim.cluster import Cluster
from minimal_vllm_lab.sim.config import Achieved, SimulationConfig
from minimal_vllm_lab.sim.cost_model import CostModel, RooflineCostModel, kv_bytes_per_token
from minimal_vllm_lab.sim.fit import read_cost_model
from minimal_vllm_lab.sim.fixed_workloads import FIXED_WORKLOADS
from minimal_vllm_lab.sim.guesses import DraftGuesses, DrawnGuesses, read_rates
from minimal_vllm_lab.sim.hardware import CONTEXT_BYTES, GPUS, Gpu
from minimal_vllm_lab.sim.job import Job
from minimal_vllm_lab.sim.metrics import Metrics, Report
from minimal_vllm_lab.sim.presets import read_model_shape
from minimal_vllm_lab.sim.recorded import recorded_jobs
from minimal_vllm_lab.sim.replica import Replica
from minimal_vllm_lab.sim.synthetic import synthetic_jobs
from minimal_vllm_lab.stats.arrivals import arrival_times
from minimal_vllm_lab.stats.slo import Slo


@dataclass(frozen=True)
class Design:
    """Complete description of one simulated engine."""

    model: ModelConfig
    """Shape of the model."""
    scheduler_config: SchedulerConfig
    """Configuration of the scheduler."""
    num_blocks: int
    """Number of KV blocks."""
    device: str
    """Name of the device, as written to traces."""
    dtype: str
    """Data type of weights and activations."""
    engine: EngineConfig
    """Engine's options, including custom scheduler and pool classes."""
    cost_model: CostModel
    """Predicts the duration of each step."""
    cascade: bool
    """True if decodes read the keys and values of a shared prefix once for all requests."""
    acceptance: Sequence[float]
    """Probability that a guess is right if those before it are, by position in a row of guesses.
    Empty without speculative decoding."""
    seed: int
    """Seed of the luck of guesses."""
    draft_costs: CostModel | None
    """Predicts the duration of a draft model's passes; None if no draft model guesses."""

    @property
    def num_experts(self) -> int:
        """Number of experts of a layer that has a mixture of them; 0 if no layer has."""
        return self.model.experts.count if self.model.experts else 0

    def make_replica(self, observers: Sequence[Observer] = ()) -> Replica:
        """Return an idle engine of this design.

        Args:
            observers: called with the records of its steps and requests.

        Raises:
            ValueError: a custom class can't be imported or does not fit.
        """
        engine = self.engine
        return Replica(
            self.scheduler_config,
            make_pool(engine, self.num_blocks),
            self.cost_model,
            observers,
            self._make_scheduler if engine.scheduler or engine.speculative_config else None,
            cascade=self.cascade,
            guesses=self._make_guesses(),
        )

    def _make_scheduler(
        self, limits: SchedulerConfig, pool: BlockPool, clock: Callable[[], float]
    ) -> SchedulerInterface:
        speculative = self.engine.speculative_config
        if speculative is None:
            return make_scheduler(self.engine, limits, pool)
        places = EaglePlaceholders() if speculative.guesser == "eagle3" else Placeholders()
        return make_speculating_scheduler(speculative, limits, pool, places, clock, on_gpu=True)

    def _make_guesses(self) -> DrawnGuesses | None:
        if not self.acceptance:
            return None
        if self.draft_costs is None:
            return DrawnGuesses(self.acceptance, self.seed)
        limits = self.scheduler_config
        speculative = self.engine.speculative_config
        is_head = speculative is not None and speculative.guesser == "eagle3"
        cache = (EagleCache if is_head else DraftCache)(
            self.num_blocks, limits.block_size, len(limits.windows), limits.max_num_batched_tokens
        )
        return DraftGuesses(self.acceptance, self.seed, self.draft_costs, cache)


def make_design(config: SimulationConfig) -> Design:
    """Make the choices that the engine would make on the given GPU, by the engine's own rules.

    No GPU is needed.

    Raises:
        ValueError: an option is not supported, or the model does not fit into the GPU's
            memory.
    """
    engine, gpu = config.engine, GPUS[config.fleet.gpu]
    model = read_model_shape(engine.model, engine.revision, engine.download_dir)
    quantization = choose_quantization(engine.quantization, model.quantization)
    model = replace(model, quantization=quantization)
    dtype = model.dtype if engine.dtype == "auto" else engine.dtype
    if dtype == "float32":
        raise ValueError(
            "the simulator only knows the GPUs' 16-bit rates, and this model would run in "
            "float32: set dtype to bfloat16"
        )
    itemsize = DTYPE_BYTES[dtype]
    kv_itemsize = 1 if config.engine.kv_cache_dtype == "fp8" else itemsize
    model_len = choose_model_len(engine, model)
    batched_tokens = choose_batched_tokens(engine, model_len, "cuda")
    groups = choose_groups(model, model_len)
    draft = _read_draft(config, model, model_len)
    num_blocks = engine.num_gpu_blocks_override or _count_blocks(
        engine, model, groups, gpu, itemsize, kv_itemsize, batched_tokens, draft
    )
    return Design(
        model=model,
        scheduler_config=choose_scheduler_config(
            engine, groups, model_len, batched_tokens, num_blocks
        ),
        num_blocks=num_blocks,
        device=f"{config.fleet.gpu} (simulated)",
        dtype=dtype,
        engine=engine,
        cost_model=read_cost_model(Path(config.fleet.cost_model))
        if config.fleet.cost_model
        else RooflineCostModel(model, gpu, config.achieved, itemsize, kv_itemsize),
        cascade=config.achieved.cascade,
        acceptance=_acceptance(config),
        seed=config.traffic.seed,
        draft_costs=RooflineCostModel(
            draft.as_model if isinstance(draft, EagleConfig) else draft,
            gpu,
            _of_passes(config.achieved),
            itemsize,
            kv_itemsize,
        )
        if draft
        else None,
    )


def _read_draft(
    config: SimulationConfig, model: ModelConfig, model_len: int
) -> ModelConfig | EagleConfig | None:
    """Return the shape of the draft model or head; None if neither guesses.

    Raises:
        ValueError: it can't guess for the model, or its passes can't be simulated.
    """
    speculative = config.engine.speculative_config
    if speculative is None or speculative.guesser == "ngram":
        return None
    if not speculative.in_passes:
        raise ValueError(
            f"the simulator draws by acceptance_rate whether guesses are right, and does not call "
            f"{speculative.guesser}: set the method to ngram, draft_model or eagle3"
        )
    if config.fleet.cost_model:
        raise ValueError(
            "a fitted cost_model doesn't tell a draft model's passes from the rest of a step: "
            "leave out cost_model, or use the method ngram"
        )
    if speculative.guesser == "eagle3":
        return _read_head(config.engine, speculative.model, model, model_len)
    name = speculative.model or str(DRAFT_MODEL_DIR)
    draft = read_model_shape(name, None, config.engine.download_dir)
    check_draft_fits(Path(name).name, draft, model, model_len)
    return draft


def _read_head(
    engine: EngineConfig, name: str | None, model: ModelConfig, model_len: int
) -> EagleConfig:
    folder = resolve_model(name or EAGLE_HEAD_DIR, None, engine.download_dir, weights=False)
    head = EagleConfig.from_checkpoint(folder)
    check_eagle_fits(folder.name, head, model, model_len)
    return head


def _acceptance(config: SimulationConfig) -> Sequence[float]:
    """Return the probability of a right guess at each position.

    Raises:
        ValueError: speculative decoding is on and the probability is not given, or the trace
            can't be read.
    """
    guessing = config.guessing
    if config.engine.speculative_config is None:
        return ()
    if guessing.acceptance_trace is not None:
        return read_rates(Path(guessing.acceptance_trace))
    if guessing.acceptance_rate is None:
        raise ValueError(
            "speculative_config needs the probability that a guess is right: give "
            "acceptance_rate, or acceptance_trace"
        )
    return (guessing.acceptance_rate,)


def _of_passes(achieved: Achieved) -> Achieved:
    """Return what a draft model's passes achieve: the CPU's costs are those of the whole step."""
    return replace(achieved, step_overhead_ms=0.0)


def make_jobs(config: SimulationConfig) -> Iterator[Job]:
    """Return the requests of the workload in order of arrival; they are the same on each call.

    Raises:
        ValueError: burstiness is set although all requests arrive at once.
    """
    traffic = config.traffic
    if traffic.burstiness != 1 and not traffic.request_rate:
        raise ValueError("burstiness needs a request_rate: without one, all requests come at once")
    if traffic.is_recorded:
        return recorded_jobs(Path(traffic.workload), traffic.seed)
    arrivals = arrival_times(traffic.request_rate or inf, traffic.burstiness, traffic.seed)
    if traffic.workload == "synthetic":
        return synthetic_jobs(config.synthetic, traffic.seed, arrivals)
    requests = FIXED_WORKLOADS[traffic.workload]()
    return (
        Job(arrival, array("i", tokens), num_output_tokens)
        for arrival, (tokens, num_output_tokens) in zip(arrivals, requests, strict=False)
    )


def simulate(
    design: Design,
    config: SimulationConfig,
    slo: Slo | None = None,
    observers_of: Callable[[int], Sequence[Observer]] = lambda _: (),
    jobs: Iterable[Job] | None = None,
) -> Report:
    """Run a simulation to its end.

    Args:
        design: design of each engine, see ``make_design``.
        config: number of engines, and their workload.
        slo: objective that good requests meet. Default: good requests are not counted.
        observers_of: returns the observers of the replica with a given index. Default: none.
        jobs: requests in order of arrival. Default: those of the configured traffic.

    Raises:
        ValueError: the workload, or its file, is invalid.
    """
    fleet, metrics = config.fleet, Metrics(slo)
    replicas = [design.make_replica(observers_of(index)) for index in range(fleet.replicas)]
    router = ROUTERS[fleet.routing](range(fleet.replicas), design.scheduler_config.block_size)
    Cluster(replicas, router, metrics).run(make_jobs(config) if jobs is None else jobs)
    return metrics.report(replicas)


def _count_blocks(
    engine: EngineConfig,
    model: ModelConfig,
    groups: LayerGroups,
    gpu: Gpu,
    itemsize: int,
    kv_itemsize: int,
    batched_tokens: int,
    draft: ModelConfig | EagleConfig | None,
) -> int:
    used = weight_bytes(model, "float16") + CONTEXT_BYTES
    activations = estimate_activations(model, itemsize, batched_tokens, engine.max_num_seqs)
    activations += unpacked_bytes(model, itemsize)
    bytes_per_layer = kv_bytes_per_token(model, kv_itemsize) // model.num_layers
    block_bytes = engine.block_size * groups.size * bytes_per_layer
    if draft is not None:
        activations += draft_activations(draft, itemsize, batched_tokens, engine.max_num_seqs)
    if isinstance(draft, EagleConfig):
        used += draft.weight_bytes("float16")
        block_bytes += engine.block_size * draft.bytes_per_token(itemsize, kv_itemsize)
    elif draft is not None:
        used += weight_bytes(draft, "float16")
        block_bytes += engine.block_size * kv_bytes_per_token(draft, kv_itemsize)
    memory = DeviceMemory("cuda", total=gpu.memory, free=gpu.memory - used, used_by_process=used)
    return count_fitting_blocks(engine, memory, activations, block_bytes)
