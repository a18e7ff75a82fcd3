"""What the sampler must know of a request."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from minimal_vllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from array import array

    from minimal_vllm.sampling.grammar import Grammar

NO_TOKEN = -1
"""Stands for the token of a row from which nothing can be sampled."""


class SamplingRow(Protocol):
    """The request that a row of logits belongs to; ``engine.request.Request`` is one."""

    @property
    def params(self) -> SamplingParams:
        """What was asked for."""

    @property
    def token_ids(self) -> "array[int]":
        """Prompt and output so far, as ``array('i')``."""

    @property
    def num_prompt_tokens(self) -> int:
        """How many of ``token_ids`` are the prompt."""

    @property
    def seed(self) -> int:
        """The random numbers are a function of this and of the output's length."""

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """Tokens that end the output."""

    @property
    def bad_word_ids(self) -> Sequence[tuple[int, ...]]:
        """The bad words, as tokens."""

    @property
    def grammar(self) -> "Grammar | None":
        """What the output must match; None: anything."""


def num_output_tokens(row: SamplingRow) -> int:
    """How many tokens of the row's are generated ones."""
    return len(row.token_ids) - row.num_prompt_tokens
