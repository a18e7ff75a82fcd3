"""The ideas that can be switched off, and what then takes their places."""

from dataclasses import dataclass, field, replace
from typing import Any

from minimal_vllm.config import EngineConfig
from minimal_vllm_lab.ablate.policies import (
    ContiguousPool,
    DeclaredReserved,
    LongestReserved,
    Reservation,
    StaticBatching,
)

ALL_ON = "all on"


@dataclass(frozen=True)
class Idea:
    """Something that makes an engine faster, or lets it hold more."""

    instead: str
    """What happens without it."""
    changes: dict[str, Any] = field(default_factory=dict)
    """The fields of ``EngineConfig`` that switch it off."""
    on_gpu: bool = False
    """Whether it is there only where the engine runs on a GPU, with our kernels."""


IDEAS = {
    "continuous-batching": Idea("a new batch when the last is done", {"scheduler": StaticBatching}),
    "paging": Idea(
        "max_model_len reserved in one piece, nothing shared",
        {
            "scheduler": LongestReserved,
            "block_pool": ContiguousPool,
            "enable_prefix_caching": False,
        },
    ),
    "prefix-caching": Idea("every prompt computed", {"enable_prefix_caching": False}),
    "chunked-prefill": Idea("whole prompts in one step", {"enable_chunked_prefill": False}),
    "preemption": Idea("all that it may need reserved", {"scheduler": Reservation}),
    "lru": Idea("first in, first out", {"eviction_policy": "fifo"}),
    "cuda-graphs": Idea("each kernel launched", {"enforce_eager": True}, on_gpu=True),
    "async-scheduling": Idea("one step after the other", {"async_scheduling": False}, on_gpu=True),
    "cascade": Idea("shared prefixes read by each", {"cascade_attention": False}, on_gpu=True),
}

DECLARED = Idea(
    "max_tokens reserved in one piece, nothing shared",
    IDEAS["paging"].changes | {"scheduler": DeclaredReserved},
)
"""What is left of the waste without paging if all lengths are known beforehand."""


def without(idea: Idea, config: EngineConfig, max_model_len: int) -> EngineConfig:
    """The configuration with an idea switched off.

    Args:
        idea: the one.
        config: with it.
        max_model_len: of the engine that ``config`` makes. Without chunks a prompt of this length
            must fit into a step.
    """
    changed = replace(config, **idea.changes)
    budget = changed.max_num_batched_tokens
    if not changed.enable_chunked_prefill and budget:
        changed = replace(changed, max_num_batched_tokens=max(budget, max_model_len))
    return changed
