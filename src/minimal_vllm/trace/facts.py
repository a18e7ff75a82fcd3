"""Facts about the engine whose run was recorded."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from minimal_vllm.demo import DEMO_MODEL_DIR, DEMO_MODEL_NAME
from minimal_vllm.plugin import part_name
from minimal_vllm.version import __version__

if TYPE_CHECKING:
    from minimal_vllm.config import EngineConfig, SchedulerConfig


@dataclass(frozen=True)
class EngineFacts:
    """Settings of an engine that are needed to understand its records."""

    program: str
    """Name and version of the program that ran the engine."""
    model: str
    """Model as the user named it, or the name of the built-in model."""
    device: str
    """Device that computed the steps, such as ``cpu`` or ``cuda:0``."""
    dtype: str
    """Dtype of weights and KV cache."""
    num_blocks: int
    """Number of KV blocks in the pool."""
    block_size: int
    """Number of tokens per block."""
    max_model_len: int
    """Maximum number of tokens in a request, prompt and output."""
    max_num_batched_tokens: int
    """Maximum number of tokens computed per step."""
    max_num_seqs: int
    """Maximum number of requests that run at once."""
    scheduling_policy: str
    """Order in which requests are served."""
    eviction_policy: str
    """Order in which cached blocks are evicted."""
    enable_prefix_caching: bool
    """Whether blocks are kept for later requests and shared."""
    enable_chunked_prefill: bool
    """Whether a prompt may be computed in several steps."""
    windows: tuple[int | None, ...] = (None,)
    """Sliding window of each group of layers; a block table has an entry per group, in turn."""
    num_experts: int = 0
    """Number of experts of a layer that has a mixture of them; 0 if no layer has."""


class Described(Protocol):
    """Built or simulated engine, with the attributes that its facts are taken from."""

    @property
    def scheduler_config(self) -> "SchedulerConfig":
        """Limits of the scheduler."""

    @property
    def num_blocks(self) -> int:
        """Number of KV blocks in the pool."""

    @property
    def num_experts(self) -> int:
        """Number of experts of a layer that has a mixture of them; 0 if no layer has."""

    @property
    def device(self) -> object:
        """Device, or its name."""

    @property
    def dtype(self) -> object:
        """Dtype of weights and cache, or its name."""


def engine_facts(config: "EngineConfig", built: Described) -> EngineFacts:
    """Return the facts of an engine that was built, or simulated, from ``config``."""
    limits = built.scheduler_config
    return EngineFacts(
        program=f"minimal-vllm {__version__}",
        model=DEMO_MODEL_NAME if config.model == str(DEMO_MODEL_DIR) else config.model,
        device=str(built.device),
        dtype=str(built.dtype).removeprefix("torch."),
        num_blocks=built.num_blocks,
        block_size=limits.block_size,
        max_model_len=limits.max_model_len,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_num_seqs=limits.max_num_seqs,
        scheduling_policy=limits.policy,
        eviction_policy=part_name(config.eviction_policy),
        enable_prefix_caching=limits.enable_prefix_caching,
        enable_chunked_prefill=limits.enable_chunked_prefill,
        windows=limits.windows,
        num_experts=built.num_experts,
    )
