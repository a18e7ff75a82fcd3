"""What a finished or running request gives back, with vLLM's names."""

from dataclasses import dataclass, field
from enum import Enum


@dataclass(slots=True)
class Logprob:
    """The log-probability of one token, its rank in the vocabulary (1 is the top) and its text."""

    logprob: float
    rank: int
    decoded_token: str | None = None


TokenLogprobs = dict[int, Logprob]
"""Token id -> its log-probability, for one position."""


class OutputKind(Enum):
    """When a request gives outputs, and what they hold."""

    CUMULATIVE = "cumulative"
    """At each step, all that has been generated so far."""
    DELTA = "delta"
    """At each step, what is new."""
    FINAL_ONLY = "final_only"
    """Once, at its end: cheaper, since text is made in one go."""


@dataclass(slots=True)
class RequestMetrics:
    """When a request passed which door, in seconds of ``time.monotonic()``."""

    arrival_time: float
    first_token_time: float | None = None
    finished_time: float | None = None


@dataclass(slots=True)
class CompletionOutput:
    """One of the ``n`` completions of a request, as far as it has come."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    """``"stop"`` (end of sequence, stop token, stop string), ``"length"``, ``"abort"`` or
    ``"error"``; None while it runs."""
    stop_reason: int | str | None = None
    """The stop token or stop string that ended it, or what the error was; None otherwise."""

    def finished(self) -> bool:
        """Whether no more tokens will come."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """A request's completions so far; the last one given has ``finished`` set."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[TokenLogprobs | None] | None
    """One entry per prompt token; the first is None, since nothing precedes it."""
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int = 0
    """How many prompt tokens were found in the prefix cache."""
    metrics: RequestMetrics | None = field(default=None, repr=False)
