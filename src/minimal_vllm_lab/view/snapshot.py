"""Snapshots of the engine's state between two steps."""

from dataclasses import dataclass
from typing import Any

from minimal_vllm.engine.scheduler_interface import SchedulerInterface
from minimal_vllm.step.request import Request, Status
from minimal_vllm_lab.view.contents import BlockContents


@dataclass(frozen=True, slots=True)
class RequestState:
    """State of a request that has not finished."""

    request_id: str
    arrival: int
    arrived: float
    """Arrival time, ``time.monotonic()`` in seconds."""
    priority: int
    params: dict[str, Any]
    status: str
    """``"waiting"`` or ``"running"``."""
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    num_computed_tokens: int
    num_cached_tokens: int
    num_preemptions: int
    block_table: tuple[int, ...]
    """For each block's tokens in turn, the block of each group of layers; -1: none."""
    block_hashes: tuple[str, ...]
    """Hashes of its full blocks, as far as they have been computed."""
    num_findable_blocks: int
    """Number of these hashes, the first ones, by which blocks of its own were found or stored."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The engine's state after a step."""

    step: int
    """Number of the last step. -1: no step was made yet."""
    requests: tuple[RequestState, ...]
    """The running requests in order of service, followed by the waiting ones in order."""
    hashes: dict[int, str]
    """Hashes of all cached blocks, by block id."""
    eviction_order: tuple[int, ...]
    """Cached blocks that no request holds, the next one to be evicted first."""
    contents: dict[str, tuple[int, ...]]
    """Tokens of cached blocks, by hash."""
    prefix_queries: int
    prefix_hits: int


def take_snapshot(scheduler: SchedulerInterface, contents: BlockContents, step: int) -> Snapshot:
    """Copy the engine's state. Must be called in the engine's thread, between two steps."""
    pool, stats = scheduler.pool, scheduler.prefix_cache_stats
    requests = [*scheduler.running, *scheduler.waiting]
    return Snapshot(
        step=step,
        requests=tuple(_request_state(request, contents) for request in requests),
        hashes={block: block_hash.hex() for block, block_hash in pool.hashes.items()},
        eviction_order=tuple(pool.eviction_order),
        contents=contents.cached,
        prefix_queries=stats.queries,
        prefix_hits=stats.hits,
    )


def _request_state(request: Request, contents: BlockContents) -> RequestState:
    record = contents.requests[request.request_id]
    return RequestState(
        request_id=request.request_id,
        arrival=request.arrival,
        arrived=record.arrived,
        priority=request.priority,
        params=record.params,
        status="running" if request.status is Status.RUNNING else "waiting",
        token_ids=tuple(request.token_ids),
        num_prompt_tokens=request.num_prompt_tokens,
        num_computed_tokens=request.num_computed_tokens,
        num_cached_tokens=request.num_cached_tokens or 0,
        num_preemptions=request.num_preemptions,
        block_table=tuple(request.block_table),
        block_hashes=tuple(block_hash.hex() for block_hash in request.block_hashes),
        num_findable_blocks=request.num_findable_blocks,
    )
