"""Everything about a simulation that can be set, beside the engine's own options."""

from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from minimal_vllm.config import EngineConfig, PositiveInt
from minimal_vllm_lab.sim.fixed_workloads import FIXED_WORKLOADS

_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)

Fraction = Annotated[float, Field(gt=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, config=_CONFIG)
class FleetConfig:
    """On what the model runs."""

    gpu: Literal[
        "b200", "h200", "h100", "a100", "a100-40gb", "l40s", "l4", "a10", "4090", "3090"
    ] = "h200"
    """Which GPU; its datasheet tells the rates and the memory."""
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """auto: the model's own; fp8: half of that, which the simulator has and the engine has not."""
    cost_model: str | None = None
    """A trace of a real run (.jsonl), whose steps costs are fitted to, in the place of the
    datasheet's rates; or a file of coefficients that were fitted before."""
    replicas: PositiveInt = 1
    """So many engines, each on a GPU of its own."""
    routing: Literal["round-robin", "least-loaded", "prefix-aware"] = "round-robin"
    """Which replica a request is sent to."""


@dataclass(frozen=True, config=_CONFIG)
class Achieved:
    """How much of the datasheet an engine gets, and what a step costs beside its kernels.

    The defaults describe vLLM 0.24 on an H200: they were chosen by hand so that the measured times
    of ``benchmarks/measured/vllm_h200.json`` come out. Another engine or GPU has others.
    """

    bandwidth_fraction: Fraction = 0.85
    """Of the memory's bandwidth."""
    matmul_fraction: Fraction = 0.7
    """Of the arithmetic rate, in products with weights."""
    attention_fraction: Fraction = 0.5
    """Of the arithmetic rate, in attention."""
    step_overhead_ms: NonNegative = 1.4
    """What each step costs beside its kernels: planning, launching, handing tokens over."""
    launch_ms_per_layer: NonNegative = 0.0
    """A step with prompts takes at least so long for each layer, if its kernels are launched one by
    one; 0: they are recorded or compiled, as vLLM's are and this engine's."""
    batch_us_per_layer: NonNegative = 0.0
    """What each layer takes beside bytes and arithmetic in a step with more than one token: the
    GPU fills up and runs empty with each kernel; 0: not more than with one token, which is in
    step_overhead_ms."""
    admission_us_per_token: NonNegative = 0.0
    """What the CPU takes to check, copy and hash a prompt, cached or not; it counts where the GPU
    waits for it, since no step runs."""
    idle_start_ms: NonNegative = 0.0
    """How much longer the first step takes where none runs: chosen by measured times to the first
    token. Probably the CPU plans and launches it while the GPU waits."""
    cascade: bool = False
    """Whether a step of decodes alone reads what several prompts begin with once for all of them:
    cascade attention, which this engine has on a GPU."""


@dataclass(frozen=True, config=_CONFIG)
class TrafficConfig:
    """What is asked, and when."""

    workload: str = "synthetic"
    """synthetic, one of the fixed ones (mixed256, prefix256, latency1, long32, prefill64), or a
    .jsonl file with max_tokens, arrival and prompt_len or prompt_token_ids on each line."""
    request_rate: Annotated[float, Field(gt=0)] | None = None
    """New requests (or conversations) per second; None: all come at once."""
    burstiness: Annotated[float, Field(gt=0)] = 1.0
    """Shape of the gamma distributed gaps between them; 1: a Poisson process, less: bursts."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of all random numbers."""

    @model_validator(mode="after")
    def _fields_agree(self) -> "TrafficConfig":
        if self.is_recorded and self.request_rate:
            raise ValueError(f"{self.workload} has arrivals of its own: leave out request_rate")
        if not self.is_recorded and self.workload not in ("synthetic", *FIXED_WORKLOADS):
            raise ValueError(
                f"workload is {self.workload!r}, but must be synthetic, a file that ends with "
                f".jsonl, or one of {', '.join(FIXED_WORKLOADS)}"
            )
        return self

    @property
    def is_recorded(self) -> bool:
        """Whether it is a file."""
        return self.workload.endswith(".jsonl")


@dataclass(frozen=True, config=_CONFIG)
class SyntheticConfig:
    """What synthetic traffic looks like."""

    num_prompts: PositiveInt = 1000
    """So many requests, or conversations, if they have several turns."""
    length_distribution: Literal["lognormal", "uniform"] = "lognormal"
    """Of prompts and outputs: many short and few long ones, as in chats, or uniform."""
    input_len: PositiveInt = 256
    """The mean length of a prompt, or of what a turn adds to it; without the shared prefix."""
    output_len: PositiveInt = 256
    """The mean length of an output."""
    range_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Uniform lengths reach from 1 - ratio to 1 + ratio times the mean; 0: all are equal."""
    prefix_len: Annotated[int, Field(ge=0)] = 0
    """So many tokens at the start of each prompt are shared with others."""
    num_prefixes: PositiveInt = 1
    """So many different prefixes there are, all equally frequent."""
    num_turns: PositiveInt = 1
    """Requests of a conversation, each with all that was said before in its prompt."""
    think_time: Annotated[float, Field(ge=0)] = 10.0
    """Seconds between an answer and the next turn, on average; exponentially distributed."""

    @model_validator(mode="after")
    def _fields_agree(self) -> "SyntheticConfig":
        if self.range_ratio and self.length_distribution != "uniform":
            raise ValueError("range_ratio needs length_distribution uniform")
        if self.num_prefixes > 1 and not self.prefix_len:
            raise ValueError("num_prefixes needs a prefix_len: how many tokens are shared?")
        return self


ENGINE_OPTIONS = frozenset(
    {
        *("model", "revision", "download_dir", "dtype", "max_model_len", "block_size"),
        *("gpu_memory_utilization", "num_gpu_blocks_override", "eviction_policy"),
        *("block_pool", "scheduler"),
        *("max_num_batched_tokens", "max_num_seqs"),
        *("enable_prefix_caching", "enable_chunked_prefill"),
    }
)
"""The fields of ``EngineConfig`` on which a simulation depends."""


@plain_dataclass(frozen=True)
class SimulationConfig:
    """All of it."""

    engine: EngineConfig
    """Of which only the ``ENGINE_OPTIONS`` have an effect."""
    fleet: FleetConfig = field(default_factory=FleetConfig)
    achieved: Achieved = field(default_factory=Achieved)
    traffic: TrafficConfig = field(default_factory=TrafficConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
