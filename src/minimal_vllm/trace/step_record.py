"""One step of the engine, as a record for metrics, trace files and viewers."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScheduledRecord:
    """What one request did in a step."""

    request_id: str
    start: int
    """Position of the first token computed."""
    num_tokens: int
    cached_blocks: tuple[int, ...]
    """Found in the prefix cache, if it was admitted in this step: its block table's beginning."""
    new_blocks: tuple[int, ...]
    """What its block table was then extended by."""
    sampled_token: int | None
    """None for a prompt's chunk that is not its last."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one step did, and the state it left behind. Times are seconds."""

    step: int
    """Counts from 0."""
    started: float
    """``time.monotonic()`` when it began."""
    schedule_seconds: float
    run_seconds: float
    """Batch building, the model, and sampling."""
    update_seconds: float
    scheduled: tuple[ScheduledRecord, ...]
    admitted: tuple[str, ...]
    preempted: tuple[str, ...]
    finished: tuple[tuple[str, str], ...]
    """Request ids, each with its finish reason; those that ended since the last step come
    first."""
    evicted_blocks: tuple[int, ...]
    num_running: int
    num_waiting: int
    num_blocks: int
    num_free_blocks: int
    """Free or evictable."""
    num_cached_blocks: int
    """Findable by their hash, referenced or not."""
    prefix_queries: int
    """Prompt tokens looked up in the prefix cache, since the start."""
    prefix_hits: int
    """Those found."""


StepObserver = Callable[[StepRecord], None]
