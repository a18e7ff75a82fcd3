"""Options of a simulation, in addition to the engine's own options."""

from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from minimal_vllm.config import EngineConfig, PositiveInt
from minimal_vllm_lab.sim.fixed_workloads import FIXED_WORKLOADS

_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

Fraction = Annotated[float, Field(gt=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, config=_CONFIG)
class FleetConfig:
    """Hardware that the model runs on."""

    gpu: Literal[
        "b200", "h200", "h100", "a100", "a100-40gb", "l40s", "l4", "a10", "4090", "3090"
    ] = "h200"
    """Type of GPU. Its datasheet gives the peak rates and the memory."""
    cost_model: str | None = None
    """File that replaces the datasheet's rates: a trace of a real run (.jsonl), to whose steps a
    cost model is fitted, or a JSON file of coefficients fitted before."""
    replicas: PositiveInt = 1
    """Number of engines, each on its own GPU."""
    routing: Literal["round-robin", "least-loaded", "prefix-aware"] = "round-robin"
    """Policy that chooses a replica for each request."""


@dataclass(frozen=True, config=_CONFIG)
class Achieved:
    """Achieved fractions of the datasheet's rates, and costs of a step beside its kernels.

    The defaults describe vLLM 0.24 on an H200. They were chosen by hand to reproduce the times
    measured in ``benchmarks/measured/vllm_h200.json``. Another engine or another GPU has other
    values.
    """

    bandwidth_fraction: Fraction = 0.85
    """Achieved fraction of the memory bandwidth."""
    matmul_fraction: Fraction = 0.7
    """Achieved fraction of the peak FLOP rate in matrix products with weights."""
    attention_fraction: Fraction = 0.5
    """Achieved fraction of the peak FLOP rate in attention."""
    step_overhead_ms: NonNegative = 1.4
    """Cost of each step beside its kernels: planning, launching and returning tokens."""
    launch_ms_per_layer: NonNegative = 0.0
    """Minimum time per layer of a step that contains prompts, for engines that launch its kernels
    one by one. 0: kernels are recorded in a CUDA graph or compiled, as in vLLM and in this
    engine."""
    batch_us_per_layer: NonNegative = 0.0
    """Additional time per layer in a step of more than one token, because the GPU fills and drains
    with each kernel. 0: no more than in a step of one token, where step_overhead_ms includes it."""
    admission_us_per_token: NonNegative = 0.0
    """CPU time per prompt token, cached or not, to check, copy and hash it. It counts only when no
    step runs, because then the GPU waits for it."""
    idle_start_ms: NonNegative = 0.0
    """Additional time of the first step after idling. It was chosen to match measured times to
    first token. A probable cause is that the CPU plans and launches this step while the GPU
    waits."""
    cascade: bool = False
    """Model cascade attention: a step that only decodes reads the keys and values of a shared
    prefix once for all its requests. This engine does so on a GPU."""


@dataclass(frozen=True, config=_CONFIG)
class TrafficConfig:
    """Workload, and the arrival times of its requests."""

    workload: str = "synthetic"
    """synthetic, one of the fixed workloads (mixed256, prefix256, latency1, long32, prefill64), or
    a .jsonl file with max_tokens, arrival and prompt_len or prompt_token_ids on each line."""
    request_rate: Annotated[float, Field(gt=0)] | None = None
    """New requests (or conversations) per second. Default: all arrive at once."""
    burstiness: Annotated[float, Field(gt=0)] = 1.0
    """Shape of the gamma distribution of the gaps between arrivals. 1 is a Poisson process; smaller
    values give bursts."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of all random numbers."""

    @model_validator(mode="after")
    def _fields_agree(self) -> "TrafficConfig":
        if self.is_recorded and self.request_rate:
            raise ValueError(f"{self.workload} has its own arrival times: leave out request_rate")
        if not self.is_recorded and self.workload not in ("synthetic", *FIXED_WORKLOADS):
            raise ValueError(
                f"workload is {self.workload!r}, but must be synthetic, a file that ends with "
                f".jsonl, or one of {', '.join(FIXED_WORKLOADS)}"
            )
        return self

    @property
    def is_recorded(self) -> bool:
        """True if the workload is read from a file."""
        return self.workload.endswith(".jsonl")


@dataclass(frozen=True, config=_CONFIG)
class SyntheticConfig:
    """Shape of synthetic traffic: lengths, shared prefixes and conversations."""

    num_prompts: PositiveInt = 1000
    """Number of requests, or of conversations if they have several turns."""
    length_distribution: Literal["lognormal", "uniform"] = "lognormal"
    """Distribution of prompt and output lengths. lognormal: many short and a few long ones, as in
    chats."""
    input_len: PositiveInt = 256
    """Mean length of a prompt, or of each turn of a conversation, in tokens. It excludes the shared
    prefix."""
    output_len: PositiveInt = 256
    """Mean length of an output in tokens."""
    range_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Half-width of uniform lengths: they range from 1 - ratio to 1 + ratio times the mean. 0: all
    lengths are equal."""
    prefix_len: Annotated[int, Field(ge=0)] = 0
    """Number of tokens at the start of each prompt that it shares with other prompts."""
    num_prefixes: PositiveInt = 1
    """Number of different prefixes, all equally frequent."""
    num_turns: PositiveInt = 1
    """Number of requests per conversation. Each prompt contains all earlier prompts and answers."""
    think_time: Annotated[float, Field(ge=0)] = 10.0
    """Mean time in seconds between an answer and the next turn; it is exponentially distributed."""

    @model_validator(mode="after")
    def _fields_agree(self) -> "SyntheticConfig":
        if self.range_ratio and self.length_distribution != "uniform":
            raise ValueError("range_ratio needs length_distribution to be uniform")
        if self.num_prefixes > 1 and not self.prefix_len:
            raise ValueError("num_prefixes needs prefix_len, the number of tokens in a prefix")
        return self


@dataclass(frozen=True, config=_CONFIG)
class GuessingConfig:
    """Luck of speculative decoding."""

    acceptance_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    """Probability that a guess of speculative decoding is right, if those before it are."""
    acceptance_trace: str | None = None
    """Trace of a real run with speculative decoding (.jsonl), in which the share of right guesses
    at each position replaces acceptance_rate."""

    @model_validator(mode="after")
    def _one_is_given(self) -> "GuessingConfig":
        if self.acceptance_rate is not None and self.acceptance_trace is not None:
            raise ValueError("acceptance_rate and acceptance_trace exclude each other: give one")
        return self


ENGINE_OPTIONS = frozenset(
    {
        *("model", "revision", "download_dir", "dtype", "max_model_len", "block_size"),
        "kv_cache_dtype",
        *("gpu_memory_utilization", "num_gpu_blocks_override", "eviction_policy"),
        *("block_pool", "scheduler"),
        *("max_num_batched_tokens", "max_num_seqs"),
        *("enable_prefix_caching", "enable_chunked_prefill", "speculative_config"),
    }
)
"""Fields of ``EngineConfig`` that a simulation depends on."""


@plain_dataclass(frozen=True)
class SimulationConfig:
    """Complete configuration of one simulation."""

    engine: EngineConfig
    """Engine's options, of which only ``ENGINE_OPTIONS`` have an effect."""
    fleet: FleetConfig = field(default_factory=FleetConfig)
    achieved: Achieved = field(default_factory=Achieved)
    traffic: TrafficConfig = field(default_factory=TrafficConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    guessing: GuessingConfig = field(default_factory=GuessingConfig)
