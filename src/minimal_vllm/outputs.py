"""Outputs of running and finished requests, with vLLM's names."""

from dataclasses import dataclass, field
from enum import Enum


@dataclass(slots=True)
class Logprob:
    """Log-probability of one token, with the token's rank and text."""

    logprob: float
    """Natural logarithm of the token's probability."""
    rank: int
    """Rank of the token by probability; 1 is the most probable."""
    decoded_token: str | None = None
    """Text of the token; None without a tokenizer, or with ``detokenize=False``."""


TokenLogprobs = dict[int, Logprob]
"""Log-probabilities by token id, for one position."""


class OutputKind(Enum):
    """Kind of outputs that a request produces."""

    CUMULATIVE = "cumulative"
    """One output per step, with everything generated so far."""
    DELTA = "delta"
    """One output per step, with what is new."""
    FINAL_ONLY = "final_only"
    """One output at the end. Cheapest, because text is decoded once."""


@dataclass(slots=True)
class RequestMetrics:
    """Times of a request's events, in seconds of ``time.monotonic()``."""

    arrival_time: float
    """Time at which the request was added to the engine."""
    first_token_time: float | None = None
    """Time at which the first token was sampled; None before."""
    finished_time: float | None = None
    """Time at which the request ended; None before."""


@dataclass(slots=True)
class CompletionOutput:
    """One of the ``n`` completions of a request, finished or not."""

    index: int
    """Index among the ``n`` completions of the prompt, from 0."""
    text: str
    """Generated text, without the prompt; empty with ``detokenize=False``."""
    token_ids: list[int]
    """Generated tokens."""
    cumulative_logprob: float | None = None
    """Sum of the log-probabilities of the generated tokens; None without ``logprobs``."""
    logprobs: list[TokenLogprobs] | None = None
    """Log-probabilities, one entry per generated token; None without ``logprobs``."""
    finish_reason: str | None = None
    """Reason for the end: ``"stop"`` (end of sequence, stop token or stop string), ``"length"``,
    ``"abort"`` or ``"error"``; None before."""
    stop_reason: int | str | None = None
    """Stop token or stop string that ended the completion, or the error's message; else None."""

    def finished(self) -> bool:
        """Return whether the completion has ended. A method, as in vLLM."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """Completions of one request. The last output of a request has ``finished`` set."""

    request_id: str
    """Id of the request in the engine."""
    prompt: str | None
    """Text of the prompt; None if it was given as token ids."""
    prompt_token_ids: list[int]
    """Tokens of the prompt."""
    prompt_logprobs: list[TokenLogprobs | None] | None
    """Log-probabilities, one entry per prompt token; the first is None. None if not asked for."""
    outputs: list[CompletionOutput]
    """Completions, one for each of ``n``."""
    finished: bool
    """Whether all completions have ended."""
    num_cached_tokens: int = 0
    """Number of prompt tokens found in the prefix cache."""
    metrics: RequestMetrics | None = field(default=None, repr=False)
    """Times of arrival, first token and end."""
