"""Outputs of running and finished requests, with vLLM's names."""

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import repeat
from typing import Any, TypeVar, overload

T = TypeVar("T")


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


class MadeWhenRead(Sequence[T]):
    """Sequence whose items are made when they are read. It equals a list of the same items."""

    __slots__ = ()

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        places = range(len(self))[index]
        return self._make(places) if isinstance(places, int) else [*map(self._make, places)]

    def _make(self, index: int) -> T:
        """Make the item with this index, which is not negative."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    def __repr__(self) -> str:
        return repr(list(self))


class FlatLogprobs(MadeWhenRead[TokenLogprobs]):
    """Log-probabilities of consecutive positions, kept as numbers like vLLM's class of this name.

    As objects they would take many times the memory, and the garbage collector longer than it takes
    to make them. All positions have equally many tokens; the first is the one in the text.

    Args:
        width: number of tokens of each position, which may repeat the first one.
        token_ids: ids of all tokens, position by position; or the bytes of int32 numbers.
        logprobs: their log-probabilities; or the bytes of float32 numbers.
        ranks: their ranks; or the bytes of int32 numbers.
        text_of: function that returns the text of a token; None: tokens get no text.
    """

    __slots__ = ("logprobs", "ranks", "text_of", "token_ids", "width")

    def __init__(
        self,
        width: int = 1,
        token_ids: Iterable[int] | bytes = b"",
        logprobs: Iterable[float] | bytes = b"",
        ranks: Iterable[int] | bytes = b"",
        text_of: Callable[[int], str] | None = None,
    ) -> None:
        self.width = width
        self.token_ids = array("i", token_ids)
        self.logprobs = array("f", logprobs)
        self.ranks = array("i", ranks)
        self.text_of = text_of

    def __len__(self) -> int:
        return len(self.token_ids) // self.width

    def _make(self, index: int) -> TokenLogprobs:
        span = slice(index * self.width, (index + 1) * self.width)
        ids = self.token_ids[span]
        texts = map(self.text_of, ids) if self.text_of else repeat(None)
        return dict(
            zip(ids, map(Logprob, self.logprobs[span], self.ranks[span], texts), strict=False)
        )

    def of_text(self) -> "array[float]":
        """Return the log-probability of each position's own token."""
        return self.logprobs[:: self.width]

    def part(self, start: int, stop: int | None = None) -> "FlatLogprobs":
        """Return a copy of some positions; an index is not negative."""
        span = slice(start * self.width, None if stop is None else stop * self.width)
        columns = (self.token_ids[span], self.logprobs[span], self.ranks[span])
        return FlatLogprobs(self.width, *columns, self.text_of)

    @classmethod
    def joined(cls, parts: "Iterable[FlatLogprobs | None]") -> "FlatLogprobs | None":
        """Return consecutive parts as one; None if all are None."""
        known = [part for part in parts if part is not None]
        if not known:
            return None
        both = known[0].part(0)
        for part in known[1:]:
            both.extend(part)
        return both

    def extend(self, others: "FlatLogprobs") -> None:
        """Append positions, which have as many tokens as those that are there already.

        They are read with this object's ``text_of``.
        """
        if not self.token_ids:
            self.width = others.width
        self.token_ids += others.token_ids
        self.logprobs += others.logprobs
        self.ranks += others.ranks

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the numbers, and the texts of these tokens instead of the function."""
        columns = (self.token_ids, self.logprobs, self.ranks)
        text_of = self.text_of and {each: self.text_of(each) for each in set(self.token_ids)}.get
        return FlatLogprobs, (self.width, *(each.tobytes() for each in columns), text_of)


class FlatPromptLogprobs(MadeWhenRead[TokenLogprobs | None]):
    """Log-probabilities of a prompt: None for its first token, which nothing comes before.

    Args:
        known: those of the tokens after the first.
    """

    __slots__ = ("known",)

    def __init__(self, known: FlatLogprobs) -> None:
        self.known = known

    def __len__(self) -> int:
        return 1 + len(self.known)

    def _make(self, index: int) -> TokenLogprobs | None:
        return self.known[index - 1] if index else None


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
    logprobs: FlatLogprobs | None = None
    """Log-probabilities, one entry per generated token; None without ``logprobs``. A sequence, not
    a list: it makes each entry when it is read, and ``list`` of it makes them all."""
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
    prompt_logprobs: FlatPromptLogprobs | None
    """Log-probabilities, one entry per prompt token; the first is None. None if not asked for. A
    sequence like ``CompletionOutput.logprobs``."""
    outputs: list[CompletionOutput]
    """Completions, one for each of ``n``."""
    finished: bool
    """Whether all completions have ended."""
    num_cached_tokens: int = 0
    """Number of prompt tokens found in the prefix cache."""
    metrics: RequestMetrics | None = field(default=None, repr=False)
    """Times of arrival, first token and end."""
