"""What a finished or running request gives back, with vLLM's names."""

from dataclasses import dataclass, field
from enum import Enum


@dataclass(slots=True)
class Logprob:
    """The log-probability of one token, its rank in the vocabulary (1 is the top) and its text."""

    logprob: float
    """Natural logarithm of its probability."""
    rank: int
    """Its place in the vocabulary by probability; 1 is the most probable."""
    decoded_token: str | None = None
    """Its text; None without a tokenizer."""


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
    """It was added to the engine."""
    first_token_time: float | None = None
    """Its first token was sampled; None before."""
    finished_time: float | None = None
    """It ended; None before."""


@dataclass(slots=True)
class CompletionOutput:
    """One of the ``n`` completions of a request, as far as it has come."""

    index: int
    """Its place among the ``n`` completions of the prompt, from 0."""
    text: str
    """What was generated, without the prompt; empty with ``detokenize=False``."""
    token_ids: list[int]
    """The same as token ids."""
    cumulative_logprob: float | None = None
    """Sum of its tokens' log-probabilities, if ``logprobs`` were asked for."""
    logprobs: list[TokenLogprobs] | None = None
    """One entry per token generated, if they were asked for."""
    finish_reason: str | None = None
    """``"stop"`` (end of sequence, stop token, stop string), ``"length"``, ``"abort"`` or
    ``"error"``; None while it runs."""
    stop_reason: int | str | None = None
    """The stop token or stop string that ended it, or what the error was; None otherwise."""

    def finished(self) -> bool:
        """Return whether the completion has ended. A method, as in vLLM."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """A request's completions so far; the last one given has ``finished`` set."""

    request_id: str
    """The name under which the engine has it."""
    prompt: str | None
    """The prompt's text; None if it was given as token ids."""
    prompt_token_ids: list[int]
    """The prompt, as the model reads it."""
    prompt_logprobs: list[TokenLogprobs | None] | None
    """One entry per prompt token; the first is None, since nothing precedes it."""
    outputs: list[CompletionOutput]
    """The completions, ``n`` of them."""
    finished: bool
    """Whether all of them have ended."""
    num_cached_tokens: int = 0
    """How many prompt tokens were found in the prefix cache."""
    metrics: RequestMetrics | None = field(default=None, repr=False)
    """When it came, gave its first token, and ended."""
