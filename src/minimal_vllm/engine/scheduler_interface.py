"""Interface of a scheduler: the methods and attributes that the engine uses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.step.plan import Plan
from minimal_vllm.step.request import FinishReason, Request


@dataclass(slots=True)
class PrefixCacheStats:
    """Number of prompt tokens looked up in the prefix cache, and found there, since the start."""

    queries: int = 0
    hits: int = 0


class SchedulerInterface(Protocol):
    """Decides which requests compute how many tokens in the next step."""

    config: SchedulerConfig
    pool: BlockPool
    waiting: list[Request]
    running: list[Request]
    prefix_cache_stats: PrefixCacheStats

    @property
    def has_work(self) -> bool:
        """True if any request is not finished."""
        ...

    def reset(self) -> None:
        """Forget all requests and all cached blocks, whatever state an error left them in."""
        ...

    def add(self, request: Request) -> None:
        """Add a new request to the waiting requests.

        Raises:
            ValueError: the request can never run; it was not added.
        """
        ...

    def needs_pending_tokens(self) -> bool:
        """Return whether the next plan depends on tokens that a step in flight still samples."""
        ...

    def schedule(self) -> Plan:
        """Plan the next step. The plan may be empty if a step is in flight."""
        ...

    def update(self, plan: Plan, sampled: Sequence[Sequence[int]]) -> None:
        """Append the sampled tokens: one list for each request in ``plan.sampling``.

        An empty list means that nothing could be sampled, and ends its request with an error.
        """
        ...

    def finish(
        self,
        request: Request,
        reason: FinishReason,
        stop_reason: int | str | None = None,
        num_tokens: int | None = None,
    ) -> None:
        """End ``request``, whatever its state, and free its blocks.

        With ``num_tokens``, the tokens after the first ``num_tokens`` are dropped.
        """
        ...

    def fail(self, request: Request, error: str) -> None:
        """End ``request`` with an error, and forget the blocks that it has written."""
        ...
