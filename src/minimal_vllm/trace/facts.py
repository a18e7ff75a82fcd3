"""What a trace says of the engine that made it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from minimal_vllm.demo import DEMO_MODEL_DIR, DEMO_MODEL_NAME
from minimal_vllm.plugin import part_name
from minimal_vllm.version import __version__

if TYPE_CHECKING:
    from minimal_vllm.config import EngineConfig, SchedulerConfig


@dataclass(frozen=True)
class EngineFacts:
    """What must be known of an engine to understand its records."""

    program: str
    """Name and version of what ran it."""
    model: str
    """As it was named; of the built-in model its name."""
    device: str
    """Where it ran."""
    dtype: str
    """What weights and cache were held in."""
    num_blocks: int
    """KV blocks in the pool."""
    block_size: int
    """Tokens per block."""
    max_model_len: int
    """No request grew beyond so many tokens."""
    max_num_batched_tokens: int
    """The token budget of a step."""
    max_num_seqs: int
    """At most so many requests ran at once."""
    scheduling_policy: str
    """Who went first."""
    eviction_policy: str
    """Which cached block was forgotten first."""
    enable_prefix_caching: bool
    """Whether blocks were kept and shared."""
    enable_chunked_prefill: bool
    """Whether prompts were computed in several steps."""


class Described(Protocol):
    """Attributes of a built or simulated engine that its facts are taken from."""

    @property
    def scheduler_config(self) -> "SchedulerConfig":
        """Limits of the scheduler."""

    @property
    def num_blocks(self) -> int:
        """Number of KV blocks in the pool."""

    @property
    def device(self) -> object:
        """Device, or its name."""

    @property
    def dtype(self) -> object:
        """Dtype of weights and cache, or its name."""


def engine_facts(config: "EngineConfig", built: Described) -> EngineFacts:
    """The facts of an engine that was built, or designed, from ``config``."""
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
    )
