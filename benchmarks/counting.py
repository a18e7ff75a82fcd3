"""A model that counts, and a guesser that knows it: for measuring guesses of known quality.

The model has random weights, of which a few are changed such that each token is followed by the
next higher number: the layers compute as always, but add little to the embedding, and the output
layer finds the embedding of the number before.
"""

from array import array
from collections.abc import Sequence
from random import Random
from typing import Any, ClassVar

import torch

from minimal_vllm.model.decoder import Decoder
from minimal_vllm.model.eagle import EagleHead
from minimal_vllm.model.network import Network
from minimal_vllm.speculation.ngram import NOWHERE, NgramIndex
from minimal_vllm.step.plan import ScheduledRequest
from minimal_vllm.step.request import Request

MAX_GUESSES = 5
"""Maximum number of guesses that are measured."""
CHANCES = tuple(map(Random(0).uniform, [0.0] * 10_007, [1.0] * 10_007))
"""Random numbers that decide which guesses are wrong."""
QUIET = 1e-4
"""Factor of the weights that add to the residual stream."""
SHARP, LOUD = 10.0, 100.0
"""Factors of a head's queries, and of what its attention adds to the residual stream."""


class Counting:
    """Guesses the following numbers, and is wrong with a given probability."""

    right: ClassVar[float] = 1.0
    """Probability that a guess is right."""
    most: ClassVar[int] = MAX_GUESSES
    """Maximum number of guesses."""
    tokens: ClassVar["array[int]"] = array("i")
    """Tokens of a file, which numbers stand for; empty: numbers are all there is."""

    def __init__(self) -> None:
        self._indices: dict[Request, tuple[NgramIndex, array[int]]] = {}

    def propose(
        self, entries: Sequence[ScheduledRequest], counts: Sequence[int]
    ) -> list[list[int]]:
        """Return guesses, as a ``Guesser`` does."""
        propose = self._look_up if self.tokens else self._count
        return [
            propose(entry.request, min(count, self.most))
            for entry, count in zip(entries, counts, strict=True)
        ]

    def forget(self, request: Request) -> None:
        """Drop the index of a request."""
        self._indices.pop(request, None)

    def _count(self, request: Request, count: int) -> list[int]:
        last = request.token_ids[-1]
        return [
            last + place if last_is_right(request.arrival, last + place, self.right) else 0
            for place in range(1, count + 1)
        ]

    def _look_up(self, request: Request, count: int) -> list[int]:
        """Return numbers that stand for what n-gram lookup finds in the file."""
        known = len(request.token_ids)
        index, text = self._indices.setdefault(request, (NgramIndex(3, 5), array("i")))
        text.extend(self.tokens[len(text) : known])
        index.extend(text)
        place = index.find(text)
        if place == NOWHERE:
            return []
        found = text[place : place + count]
        actual = self.tokens[known : known + len(found)]
        return [
            known + i if token == right else 0
            for i, (token, right) in enumerate(zip(found, actual, strict=False))
        ]


def last_is_right(arrival: int, token: int, right: float) -> bool:
    """Return whether a guess is to be right, at random but the same each time."""
    return CHANCES[(arrival * 4001 + token) % len(CHANCES)] < right


@torch.inference_mode()
def let_count(decoder: Network, right: float = 1.0) -> None:
    """Change weights such that each token is followed by the next higher number.

    Args:
        decoder: a network of random weights.
        right: share of tokens that are; what follows the others is wrong.
    """
    if not isinstance(decoder, Decoder):
        raise TypeError(f"{type(decoder).__name__} can't count: it is no decoder")
    layers: Any = decoder.layers
    for layer in layers:
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            projection.weight.mul_(QUIET)
    weight: Any = decoder.lm_head.weight
    if decoder.has_tied_embeddings:
        raise ValueError("a model whose embeddings are tied can't count: choose another shape")
    weight[1:] = decoder.embed_tokens.weight[:-1]
    generator = torch.Generator().manual_seed(0)
    is_wrong = torch.rand(len(weight), generator=generator) >= right
    weight[is_wrong.to(weight.device)] = 0


@torch.inference_mode()
def let_head_count(head: EagleHead, decoder: Network, right: float = 1.0) -> None:
    """Change an EAGLE-3 head's weights such that it guesses what ``let_count`` lets follow.

    Attention sees the token itself alone, since keys of different tokens are random, and passes its
    embedding on, louder than everything else. What the model says counts for nothing.

    Args:
        head: a head of random weights, with ``norm_before_residual``.
        decoder: the model, whose embedding it shares.
        right: share of tokens at which the guess is right.
    """
    if not isinstance(decoder, Decoder):
        raise TypeError(f"{type(decoder).__name__} has no embedding to share: it is no decoder")
    generator = torch.Generator(head.device).manual_seed(1)
    attention: Any = head.midlayer.self_attn
    num_heads, num_kv_heads, dim = attention.num_heads, attention.num_kv_heads, attention.head_dim
    hidden, rows = head.hidden_size, num_kv_heads * dim
    options: Any = {"dtype": torch.float32, "device": head.device}
    keys, values = (
        torch.randn(rows, hidden, generator=generator, **options) / hidden**0.5 for _ in range(2)
    )
    weight = attention.qkv_proj.weight
    weight.zero_()
    per_key = num_heads // num_kv_heads
    queries = keys.view(num_kv_heads, 1, dim, hidden).expand(-1, per_key, -1, -1)
    weight[: num_heads * dim, :hidden] = SHARP * queries.reshape(-1, hidden)
    weight[num_heads * dim : num_heads * dim + rows, :hidden] = keys
    weight[num_heads * dim + rows :, :hidden] = values
    back = torch.zeros(hidden, num_kv_heads, per_key, dim, **options)
    back[:, :, 0] = values.T.view(hidden, num_kv_heads, dim)
    attention.o_proj.weight.copy_(LOUD * back.flatten(1))
    down: Any = head.midlayer.mlp.down_proj
    down.weight.mul_(QUIET)
    known: Any = head.lm_head.weight
    table: Any = decoder.embed_tokens.weight
    embedded = torch.nn.functional.rms_norm(table[: len(known)].float(), (hidden,))
    passed_on = torch.nn.functional.rms_norm(embedded @ values.T @ values, (hidden,))
    known[1:] = passed_on[:-1].to(known.dtype)
    draws = torch.Generator().manual_seed(0)
    is_wrong = torch.rand(len(known), generator=draws) >= right
    known[is_wrong.to(known.device)] = 0
