"""Ideas that can be switched off, and what replaces each."""

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
"""Name of the variant with all ideas."""


@dataclass(frozen=True)
class Idea:
    """Idea that makes an engine faster or lets it hold more requests."""

    instead: str
    """Behavior of the engine without the idea."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of ``EngineConfig`` that switch the idea off."""
    on_gpu: bool = False
    """True if the idea only exists for engines on a GPU with this project's kernels."""


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
    "prefix-caching": Idea("every prompt computed in full", {"enable_prefix_caching": False}),
    "chunked-prefill": Idea("whole prompts in one step", {"enable_chunked_prefill": False}),
    "preemption": Idea("all blocks of a request reserved", {"scheduler": Reservation}),
    "lru": Idea("first in, first out", {"eviction_policy": "fifo"}),
    "speculation": Idea("one token of a request per step", {"speculative_config": None}),
    "cuda-graphs": Idea("each kernel launched separately", {"enforce_eager": True}, on_gpu=True),
    "async-scheduling": Idea("one step after the other", {"async_scheduling": False}, on_gpu=True),
    "cascade": Idea(
        "shared prefixes read once per request", {"cascade_attention": False}, on_gpu=True
    ),
}
"""Ideas by name, in the order of the report."""

DECLARED = Idea(
    "max_tokens reserved in one piece, nothing shared",
    IDEAS["paging"].changes | {"scheduler": DeclaredReserved},
)
"""Paging switched off, although every request's length is known in advance.

Comparing it with ``IDEAS["paging"]`` shows the waste that remains.
"""


def without(idea: Idea, config: EngineConfig, max_model_len: int) -> EngineConfig:
    """Return the configuration with an idea switched off.

    Args:
        idea: idea to switch off.
        config: configuration with the idea.
        max_model_len: maximum length of a request in tokens, as the engine with ``config`` has
            it. Without chunked prefill, the token budget of a step is raised to this length.
    """
    changed = replace(config, **idea.changes)
    budget = changed.max_num_batched_tokens
    if not changed.enable_chunked_prefill and budget:
        changed = replace(changed, max_num_batched_tokens=max(budget, max_model_len))
    return changed
