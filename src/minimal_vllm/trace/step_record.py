"""What happens in the engine, as records for metrics, trace files and viewers.

From the records alone, in their order, the state of every request and every block can be followed
step by step: `docs/trace-format.md` says how.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A request came, and waits."""

    request_id: str
    """Unique among the requests that have not ended."""
    arrival: int
    """Unique and increasing: who came first."""
    arrived: float
    """``time.monotonic()``, in seconds."""
    prompt_token_ids: tuple[int, ...]
    """The prompt, as the model reads it."""
    priority: int = 0
    """With the priority policy: smaller goes first."""
    params: dict[str, Any] = field(default_factory=dict)
    """The sampling parameters that are not the defaults."""


@dataclass(frozen=True, slots=True)
class AbortRecord:
    """A request was ended between two steps."""

    request_id: str


@dataclass(frozen=True, slots=True)
class ResetRecord:
    """All requests and all that was cached were forgotten, between two steps."""


@dataclass(frozen=True, slots=True)
class ScheduledRecord:
    """What one request did in a step."""

    request_id: str
    """Whose tokens they are."""
    start: int
    """Position of the first token computed."""
    num_tokens: int
    """How many tokens, from there on, were computed."""
    cached_blocks: tuple[int, ...] = ()
    """Found in the prefix cache, if it was admitted in this step: its block table's beginning."""
    new_blocks: tuple[int, ...] = ()
    """What its block table was then extended by."""
    sampled_token: int | None = None
    """None for a prompt's chunk that is not its last."""
    full_hashes: tuple[str, ...] = ()
    """Of those of its blocks that can be found from now on: their hashes, in hexadecimal. Empty
    without prefix caching, and without a ``Recorder``."""
    first_full: int = 0
    """The place of the first of these in its block table."""


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """A step was planned, maybe while the one before it still runs; its ``StepRecord`` follows.

    Only from an engine with asynchronous scheduling: elsewhere the ``StepRecord`` is enough.
    """

    step: int
    """The number that its ``StepRecord`` will have."""
    scheduled: tuple[ScheduledRecord, ...]
    """Nothing is sampled yet."""
    admitted: tuple[str, ...] = ()
    """Ids of the requests that were let in from the queue."""
    preempted: tuple[str, ...] = ()
    """Ids of those that lost their blocks, and wait again."""
    evicted_blocks: tuple[int, ...] = ()
    """Blocks whose cached content was forgotten, to be written anew."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one step did, and the state it left behind. Times are seconds."""

    step: int
    """Counts from 0."""
    started: float
    """``time.monotonic()`` when it began."""
    schedule_seconds: float
    """Making the plan."""
    run_seconds: float
    """Batch building, the model, and sampling."""
    update_seconds: float
    """Handing the sampled tokens to their requests, and making outputs."""
    scheduled: tuple[ScheduledRecord, ...]
    """What each request of the batch did, in their order."""
    admitted: tuple[str, ...]
    """Ids of the requests that were let in from the queue."""
    preempted: tuple[str, ...]
    """Ids of those that lost their blocks, and wait again."""
    finished: tuple[tuple[str, str], ...]
    """Request ids, each with its finish reason, in the order in which they ended; those that
    ended since the last step come first."""
    evicted_blocks: tuple[int, ...]
    """Blocks whose cached content was forgotten, to be written anew."""
    num_running: int
    """Requests that run after the step."""
    num_waiting: int
    """Requests that wait after it."""
    num_blocks: int
    """All blocks of the pool."""
    num_free_blocks: int
    """Free or evictable."""
    num_cached_blocks: int
    """Findable by their hash, referenced or not."""
    prefix_queries: int
    """Prompt tokens looked up in the prefix cache, since the start."""
    prefix_hits: int
    """Those found."""
    num_aborted: int = 0
    """So many of ``finished``, the first ones, ended before the step: each was an
    ``AbortRecord``."""


Record = RequestRecord | AbortRecord | ResetRecord | PlanRecord | StepRecord

StepObserver = Callable[[StepRecord], None]


class Recorder(ABC):
    """An observer that is told of everything, not of steps alone."""

    @abstractmethod
    def __call__(self, record: Record) -> None:
        """Take in what has just happened; called in the engine's thread."""
