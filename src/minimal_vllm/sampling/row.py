"""Interface through which the sampler reads a request."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from minimal_vllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from array import array

NO_TOKEN = -1
"""Placeholder for the token of a row of logits from which nothing can be sampled."""


class Constraint(Protocol):
    """A rule that the whole output must satisfy; ``Grammar`` is one."""

    def allowed_tokens(self, row: "SamplingRow", /) -> bytearray:
        """Return one bit per token of the vocabulary, lowest bit first: 1 if it may come next."""
        ...

    def count_allowed(self, row: "SamplingRow", tokens: Sequence[int], /) -> int:
        """Return how many of ``tokens``, the first ones, may come next, one after the other."""
        ...

    def is_complete(self, row: "SamplingRow", /) -> bool:
        """Return whether the output satisfies the rule and no token may be added to it."""
        ...

    def could_end(self, row: "SamplingRow", /) -> Sequence[bool]:
        """Return whether the output satisfied the rule before each of its tokens, and does now."""
        ...

    @property
    def error(self) -> str:
        """Reason why no token is allowed; empty if there is none."""
        ...


class SamplingRow(Protocol):
    """The request that a row of logits belongs to; ``step.request.Request`` is one."""

    params: SamplingParams
    """The request's sampling parameters."""
    token_ids: "array[int]"
    """Known tokens of prompt and output, as ``array('i')``."""
    num_prompt_tokens: int
    """Number of ``token_ids`` that are the prompt."""
    seed: int
    """Seed of the random numbers, which are a function of it and of ``next_output_index``."""
    stop_token_ids: frozenset[int]
    """Tokens that end the output."""
    bad_word_ids: tuple[tuple[int, ...], ...]
    """Bad words as token ids."""
    grammar: Constraint | None
    """Rule that the output must satisfy; None: no rule."""

    @property
    def next_output_index(self) -> int:
        """Index, in the output, of the token that is being sampled.

        ``token_ids`` may lag behind: the tokens sampled last may not be known yet.
        """


def needs_history(row: SamplingRow) -> bool:
    """Return whether the next token depends on earlier ones other than through the logits."""
    return row.grammar is not None or bool(row.bad_word_ids) or penalizes(row.params)


def penalizes(params: SamplingParams) -> bool:
    """Return whether a penalty changes the logits of tokens that were seen before."""
    penalties = (params.repetition_penalty, params.frequency_penalty, params.presence_penalty)
    return penalties != (1, 0, 0)


def needs_only_numbers(row: SamplingRow) -> bool:
    """Return whether the next token depends on the logits, the seed and a few numbers alone.

    These are temperature, top_k, top_p and min_p, which a GPU keeps in its table of requests.
    """
    params = row.params
    rules = params.allowed_token_ids is not None or params.logit_bias or params.min_tokens > 0
    return not (rules or needs_history(row))
