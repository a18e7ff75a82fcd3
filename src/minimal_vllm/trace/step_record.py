"""Records of what happens in the engine, for metrics, trace files and viewers.

The records alone, taken in order, are enough to follow the state of every request and every block
step by step. `docs/trace-format.md` describes how.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """Record of a request that arrived and waits."""

    request_id: str
    """Id of the request, unique among unfinished requests."""
    arrival: int
    """Unique number that increases with each request; the smaller one arrived first."""
    arrived: float
    """Time of arrival, from ``time.monotonic()``, in seconds."""
    prompt_token_ids: tuple[int, ...]
    """Token ids of the prompt."""
    priority: int = 0
    """Rank under the ``priority`` policy; the smaller one is served first."""
    params: dict[str, Any] = field(default_factory=dict)
    """Sampling parameters that differ from their defaults."""


@dataclass(frozen=True, slots=True)
class AbortRecord:
    """Record of a request that was aborted between two steps."""

    request_id: str
    """Id of the request."""


@dataclass(frozen=True, slots=True)
class ResetRecord:
    """Record that all requests and all cached blocks were forgotten between two steps."""


@dataclass(slots=True)
class ScheduledRecord:
    """One request's part of a step.

    It isn't frozen, because each request has one in each step, and a frozen one takes three times
    as long to make. Don't change it: all observers get the same one.
    """

    request_id: str
    """Id of the request."""
    start: int
    """Position of the first token computed. In a ``PlanRecord``, while guesses of the step before
    are in flight, as if all of them held."""
    num_tokens: int
    """Number of tokens computed, from ``start`` on."""
    cached_blocks: tuple[int, ...] = ()
    """Blocks found in the prefix cache, if the request was admitted in this step. Its block table
    begins with them. -1 stands for a block that a sliding window has passed."""
    new_blocks: tuple[int, ...] = ()
    """Blocks that were then appended to its block table."""
    sampled_tokens: tuple[int, ...] = ()
    """Tokens appended to the request, in order; empty for a chunk of a prompt that is not its last
    chunk."""
    full_hashes: tuple[str, ...] = ()
    """Hashes, in hexadecimal, of the request's blocks that the prefix cache can find from now on.
    Empty without prefix caching, and without a ``Listener``."""
    first_full: int = 0
    """Number of hashes of the request that come before ``full_hashes``."""
    num_rejected: int = 0
    """Number of computed tokens, the last ones, that were wrong guesses. The number of the
    request's computed tokens goes down by as many."""
    num_freed_blocks: int = 0
    """Number of blocks, the last ones of its block table, that were released because only rejected
    tokens were in them."""
    num_guesses: int = 0
    """Number of computed tokens, the last ones, that were guesses, right or wrong. As many of them
    were right as there are ``sampled_tokens`` but one."""
    passed_blocks: tuple[int, ...] = ()
    """Blocks of its table that were released after the step, before any token was sampled, because
    sliding windows have passed them. -1 takes their places in the table."""


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """Record of a step that was planned, maybe while another runs; a ``StepRecord`` follows.

    Only an engine with asynchronous scheduling makes these records.
    """

    step: int
    """Number of the step; its ``StepRecord`` has the same."""
    scheduled: tuple[ScheduledRecord, ...]
    """Each request's part of the step. No tokens are sampled yet."""
    admitted: tuple[str, ...] = ()
    """Ids of the waiting requests that began to run."""
    preempted: tuple[str, ...] = ()
    """Ids of the running requests that lost all their blocks and wait again."""
    evicted_blocks: tuple[int, ...] = ()
    """Cached blocks whose content was dropped, because the step writes to them."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """Record of a step that was computed, and of the state after it. Times are in seconds."""

    step: int
    """Number of the step, from 0."""
    started: float
    """Time at which the step began, from ``time.monotonic()``."""
    schedule_seconds: float
    """Time to make the plan."""
    run_seconds: float
    """Time to build the batch, run the model, and sample."""
    update_seconds: float
    """Time to append the sampled tokens to their requests, and to make outputs. If the next step
    has to wait for these tokens, the outputs are made after its launch, and don't count."""
    scheduled: tuple[ScheduledRecord, ...]
    """Each request's part of the step, in the order of the batch."""
    admitted: tuple[str, ...]
    """Ids of the waiting requests that began to run."""
    preempted: tuple[str, ...]
    """Ids of the running requests that lost all their blocks and wait again."""
    finished: tuple[tuple[str, str], ...]
    """Pairs of request id and finish reason, in the order in which the requests ended. Requests
    that ended since the previous step come first."""
    evicted_blocks: tuple[int, ...]
    """Cached blocks whose content was dropped, because the step writes to them."""
    num_running: int
    """Number of running requests after the step."""
    num_waiting: int
    """Number of waiting requests after the step."""
    num_blocks: int
    """Number of blocks in the pool."""
    num_free_blocks: int
    """Number of blocks that no request references: free or evictable."""
    num_cached_blocks: int
    """Number of blocks that the prefix cache can find, referenced or not."""
    prefix_queries: int
    """Number of prompt tokens looked up in the prefix cache since the engine started."""
    prefix_hits: int
    """Number of these tokens that were found."""
    num_aborted: int = 0
    """Number of entries of ``finished``, the first ones, that ended before the step. Each of them
    had an ``AbortRecord`` already."""
    experts_used: tuple[int, ...] = ()
    """Number of experts that computed a token, in each layer that has a mixture of them. Empty if
    no layer has, on a GPU, and if no ``Listener`` reads it."""


Record = RequestRecord | AbortRecord | ResetRecord | PlanRecord | StepRecord

Observer = Callable[[StepRecord], None]
"""Function that is called with the record of each step, in the engine's thread."""


class Listener(ABC):
    """An observer that is called with every record, not only those of steps."""

    reads_experts = False
    """Whether it reads ``StepRecord.experts_used``, which takes time to count."""

    @abstractmethod
    def __call__(self, record: Record) -> None:
        """Handle a record of what has just happened. Called in the engine's thread."""
