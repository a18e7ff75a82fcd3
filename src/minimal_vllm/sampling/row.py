"""What the sampler must know of a request."""

from typing import TYPE_CHECKING, Protocol

from minimal_vllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from array import array

NO_TOKEN = -1
"""Stands for the token of a row from which nothing can be sampled."""


class Constraint(Protocol):
    """A rule that the whole output must keep; ``Grammar`` is one."""

    def allowed_tokens(self, row: "SamplingRow", /) -> bytearray:
        """Return one bit per token of the vocabulary, lowest bit first: 1 if it may come next."""
        ...

    def is_complete(self, row: "SamplingRow", /) -> bool:
        """Return whether the output keeps the rule and no token may be added to it."""
        ...

    @property
    def error(self) -> str:
        """Reason why no token is allowed; empty if there is none."""
        ...


class SamplingRow(Protocol):
    """The request that a row of logits belongs to; ``step.request.Request`` is one."""

    params: SamplingParams
    """What was asked for."""
    token_ids: "array[int]"
    """Prompt and output so far, as far as they are known, as ``array('i')``."""
    num_prompt_tokens: int
    """How many of ``token_ids`` are the prompt."""
    seed: int
    """The random numbers are a function of this and of ``next_output_index``."""
    stop_token_ids: frozenset[int]
    """Tokens that end the output."""
    bad_word_ids: tuple[tuple[int, ...], ...]
    """The bad words, as tokens."""
    grammar: Constraint | None
    """What the output must match; None: anything."""

    @property
    def next_output_index(self) -> int:
        """The place, in the output, of the token that is being sampled.

        ``token_ids`` may be behind: those sampled last may not be known yet.
        """


def needs_history(row: SamplingRow) -> bool:
    """Whether its next token depends on those before it by more than the logits."""
    return row.grammar is not None or bool(row.bad_word_ids) or penalises(row.params)


def penalises(params: SamplingParams) -> bool:
    """Whether tokens that were seen already get other logits."""
    penalties = (params.repetition_penalty, params.frequency_penalty, params.presence_penalty)
    return penalties != (1, 0, 0)


def needs_only_numbers(row: SamplingRow) -> bool:
    """Whether its next token depends on its logits, its seed and a few numbers alone.

    These are temperature, top_k, top_p and min_p, which a GPU keeps in its table of requests.
    """
    params = row.params
    rules = params.allowed_token_ids is not None or params.logit_bias or params.min_tokens > 0
    return not (rules or needs_history(row) or params.logprobs is not None)
