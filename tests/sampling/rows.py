"""Requests as the sampler sees them, and the probabilities that they are drawn with."""

from array import array
from dataclasses import dataclass

from minimal_vllm.sampling.row import NO_TOKEN
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm_lab.check.sampler import plain_probabilities

__all__ = ["plain_probabilities", "row", "tokens_of"]


@dataclass
class Row:
    params: SamplingParams
    token_ids: "array[int]"
    num_prompt_tokens: int
    seed: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    grammar: object = None

    @property
    def next_output_index(self):
        return len(self.token_ids) - self.num_prompt_tokens


def row(prompt=(0,), output=(), seed=0, stop=(), bad_words=(), **params):
    return Row(
        SamplingParams(max_tokens=None, **params),
        array("i", [*prompt, *output]),
        len(prompt),
        seed,
        frozenset(stop),
        tuple(bad_words),
    )


def tokens_of(sampled):
    """The one token of each row; ``NO_TOKEN`` for an empty list."""
    assert all(len(tokens) <= 1 for tokens in sampled.tokens)
    return [tokens[0] if tokens else NO_TOKEN for tokens in sampled.tokens]
