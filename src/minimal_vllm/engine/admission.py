"""Admission: validating a user's request, and converting it to requests for the scheduler."""

import struct
from array import array
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from random import Random

import numpy as np

from minimal_vllm.sampling.grammar import Grammar, GrammarCompiler
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.request import Request
from minimal_vllm.text.tokenizer import Tokenizer

UNCHANGEABLE = frozenset({type(None), bool, int, float, str})
"""Types of parameters that can't be changed in place."""


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """Limits that the model and the engine impose on requests."""

    vocab_size: int
    eos_token_ids: frozenset[int]
    max_logprobs: int
    """Maximum number of log-probabilities per token; -1 for no limit."""


class Admission:
    """Validates users' prompts and parameters, and builds requests from them.

    Args:
        limits: limits of the model.
        tokenizer: needed for stop strings, bad words and grammars. None: prompts and outputs are
            token ids only.
        seed: source of the seeds for requests that have none, in the order of arrival.

    Attributes:
        grammars: compiler for the requests' grammars; None without a tokenizer.
    """

    def __init__(self, limits: ModelLimits, tokenizer: Tokenizer | None, seed: int) -> None:
        self._limits = limits
        self._tokenizer = tokenizer
        self._seeds = Random(seed)
        self._num_arrived = 0
        self.grammars = (
            GrammarCompiler(tokenizer, limits.vocab_size, limits.eos_token_ids)
            if tokenizer
            else None
        )

    def make_requests(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> list[Request]:
        """Build one request for each of the ``n`` completions.

        They share the blocks of the prompt through the prefix cache. If all are admitted in the
        same step, the first computes these blocks and the others only read them.

        Raises:
            ValueError: something is not supported; the message says what is expected instead.
        """
        prompt = self._checked_tokens("prompt_token_ids", prompt_token_ids)
        self._check(params)
        if not isinstance(priority, int):
            raise ValueError(f"priority must be an integer, not {priority!r}")
        if not isinstance(cache_salt, str | None) or cache_salt == "":
            raise ValueError(f"cache_salt must be a text that isn't empty, not {cache_salt!r}")
        params = _copied(params)  # the user may change the original while the request runs
        # The prompt's log-probabilities are the same for all completions: one computes them.
        params_of_others = replace(params, prompt_logprobs=None) if params.n > 1 else params
        seed = self._seeds.getrandbits(63) if params.seed in (None, -1) else params.seed
        bad_word_ids = tuple(self._tokenize_bad_words(params.bad_words or ()))
        requests = []
        for index in range(params.n):
            self._num_arrived += 1
            request = Request(
                request_id=request_id if params.n == 1 else f"{request_id}#{index}",
                token_ids=prompt[:],
                num_prompt_tokens=len(prompt),
                params=params if index == 0 else params_of_others,
                arrival=self._num_arrived,
                seed=seed + index,
                eos_token_ids=frozenset() if params.ignore_eos else self._limits.eos_token_ids,
                bad_word_ids=bad_word_ids,
                grammar=self._start_grammar(params),
                priority=priority,
                cache_salt=(cache_salt or "").encode(),
            )
            requests.append(request)
        return requests

    def _check(self, params: SamplingParams) -> None:
        if not isinstance(params, SamplingParams):
            raise ValueError(f"sampling_params must be SamplingParams, not {params!r}")
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias", "logprob_token_ids"):
            if token_ids := getattr(params, name):
                self._check_choice(name, token_ids)
        self._check_logprobs("logprobs", params.logprobs)
        self._check_logprobs("prompt_logprobs", params.prompt_logprobs)
        if self._tokenizer is None and (
            params.bad_words or params.stop or params.structured_outputs
        ):
            raise ValueError(
                "stop strings, bad words and structured outputs need a tokenizer, and none was "
                "loaded"
            )

    def _check_choice(self, name: str, token_ids: Iterable[int]) -> None:
        """Check the token ids of a parameter, and reject more ids than the vocabulary has.

        Each id costs time in each step, so a list that repeats ids must not grow without bound.
        """
        num_tokens, limit = len(self._checked_tokens(name, token_ids)), self._limits.vocab_size
        if num_tokens > limit:
            raise ValueError(f"{name} has {num_tokens} tokens, but the model has only {limit}")

    def _checked_tokens(self, name: str, token_ids: Iterable[int]) -> "array[int]":
        size = self._limits.vocab_size
        expected = f"the model's tokens are the integers from 0 to {size - 1}"
        try:
            known = token_ids if isinstance(token_ids, Sequence) else list(token_ids)
            packed = struct.pack(f"{len(known)}i", *known)  # twice as fast as array("i", known)
        except (TypeError, struct.error) as error:
            raise ValueError(f"{name} can't be used: {error}; {expected}") from error
        tokens = array("i", packed)
        as_numpy = np.frombuffer(tokens, dtype=np.int32)
        wrong = as_numpy[as_numpy.view(np.uint32) >= size]  # a negative number is a large one, too
        if len(wrong):
            raise ValueError(
                f"{name} has {wrong[0]}, but {expected}: it is out of vocabulary, whose size is "
                f"{size}"
            )
        return tokens

    def _check_logprobs(self, name: str, wanted: int | None) -> None:
        limit = self._limits.max_logprobs
        if wanted == -1 and limit >= self._limits.vocab_size:
            return
        if wanted is not None and limit != -1 and not 0 <= wanted <= limit:
            what = "the whole vocabulary" if wanted == -1 else wanted
            raise ValueError(
                f"{name} asks for {what}, but max_logprobs is {limit}: ask for less, or start the "
                f"engine with a larger max_logprobs"
            )

    def _start_grammar(self, params: SamplingParams) -> Grammar | None:
        if self.grammars is None or params.structured_outputs is None:
            return None
        return self.grammars.start(params.structured_outputs)

    def _tokenize_bad_words(self, words: Iterable[str]) -> Iterable[tuple[int, ...]]:
        """Yield the token ids of each word, at the start of a text and after a space."""
        if self._tokenizer is None:
            return
        for word in words:
            variants = (word.lstrip(), " " + word.lstrip())
            encoded = self._tokenizer.encode_batch(variants, add_special_tokens=False)
            yield from {tuple(token_ids) for token_ids in encoded if token_ids}


def _copied(params: SamplingParams) -> SamplingParams:
    """Return a copy of ``params``, checked again if any field may have been changed in place."""
    types = {*map(type, vars(params).values())}
    return copy(params) if types <= UNCHANGEABLE else replace(params)
