"""Requests as the sampler sees them, and a plain sampler in float64 to compare with."""

from array import array
from dataclasses import dataclass

import numpy as np

from minimal_vllm.sampling_params import SamplingParams


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


def plain_probabilities(logits, params):
    """The distribution after temperature, min_p, top_k and top_p, token by token; float64 [V]."""
    scaled = np.asarray(logits, np.float64) / params.temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    probs[probs < params.min_p * probs.max()] = 0
    order = sorted(range(len(probs)), key=lambda i: (-probs[i], i))
    if params.top_k > 0:
        probs[order[params.top_k :]] = 0
    total, sum_before = probs.sum(), 0.0
    for token in order:
        if sum_before >= params.top_p * total:
            probs[token] = 0
        sum_before += probs[token]
    return probs / probs.sum()
