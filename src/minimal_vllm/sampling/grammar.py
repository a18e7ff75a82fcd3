"""Structured output: which tokens may come next, so that the output keeps to a grammar.

The grammar's automaton is llguidance's. It walks the vocabulary as a trie of bytes, the very bytes
that the detokenizer will give out, so the tokenizer's own rules don't matter here.
"""

import importlib.util
from collections.abc import Iterable
from functools import cached_property, lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING

from minimal_vllm.sampling.grammar_check import check_grammar, compile_grammar, explain
from minimal_vllm.sampling.grammar_source import grammar_source, with_reasoning
from minimal_vllm.sampling.row import SamplingRow
from minimal_vllm.sampling_params import StructuredOutputsParams
from minimal_vllm.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_CACHED_GRAMMARS = 64
"""Compiled grammars kept for requests that ask for the same again, those used last."""


class Grammar:
    """The grammar of one output, and how far into it the output is.

    This too is a counter that catches up with a list: whatever it is asked, it first takes in the
    tokens that are new. Its state is a function of the output's tokens, so that a preemption, which
    keeps them, is none of its business.
    """

    def __init__(self, matcher: "LLMatcher") -> None:
        self._matcher = matcher
        self._num_taken = 0

    def allowed_tokens(self, row: SamplingRow) -> bytearray:
        """One bit per token of the vocabulary, the lowest of each byte first: 1 if it may come.

        The tokens that end the output may come where the grammar may end.
        """
        self._catch_up(row)
        allowed = bytearray(self._matcher.compute_bitmask())
        if self._matcher.is_accepting():
            for token_id in row.stop_token_ids:
                if token_id // 8 < len(allowed):
                    allowed[token_id // 8] |= 1 << token_id % 8
        return allowed

    def is_complete(self, row: SamplingRow) -> bool:
        """Whether the output matches the grammar, and nothing could be added to it."""
        self._catch_up(row)
        return self._matcher.is_stopped() and self._matcher.is_accepting()

    @property
    def error(self) -> str:
        """Why no token may come, if the matcher has given up: mostly, it takes too long."""
        return explain(self._matcher)

    def _catch_up(self, row: SamplingRow) -> None:
        new = row.token_ids[row.num_prompt_tokens + self._num_taken :]
        self._num_taken += len(new)
        if new:
            self._matcher.consume_tokens(new.tolist())  # one that is not allowed allows no other


class GrammarCompiler:
    """Makes grammars for the outputs of one model.

    A grammar that is asked for the first time is compiled twice, at first where it can do no harm;
    its request, and all others of the engine, wait meanwhile. Each takes ``MAX_COMPILE_SECONDS`` at
    most, and mostly milliseconds. A server has another thread ask first: this is the one part of
    the engine that threads may share.

    Args:
        tokenizer: tells the bytes of each token.
        vocab_size: the number of the model's logits.
        eos_token_ids: no text, whatever the tokenizer says.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._special_token_ids = tokenizer.special_token_ids.union(eos_token_ids)
        self._compile = lru_cache(MAX_CACHED_GRAMMARS)(self._compile_source)

    def start(self, wanted: StructuredOutputsParams) -> Grammar:
        """The grammar of an output that begins now.

        Raises:
            ValueError: naming the field that can't be used, and why.
        """
        if importlib.util.find_spec("llguidance") is None:
            raise ValueError(
                "structured output needs the package llguidance: "
                "pip install 'minimal-vllm[structured]'"
            )
        try:
            matcher = self._compile(grammar_source(wanted), wanted.reasoning)
            return Grammar(matcher.deep_copy())
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"structured_outputs.{wanted.kind} can't be used: {error}") from error

    def _compile_source(self, source: str, reasoning: str | None) -> "LLMatcher":
        return compile_grammar(with_reasoning(check_grammar(source), reasoning), self._vocabulary)

    @cached_property
    def _vocabulary(self) -> "LLTokenizer":
        """The bytes of all tokens, as a trie; for 150,000 tokens that takes a second or two.

        It has no end-of-sequence token: which tokens end an output is the request's to say.
        """
        from llguidance import LLTokenizer, TokenizerWrapper

        size = self._vocab_size
        tokens = SimpleNamespace(
            tokens=[self._tokenizer.token_bytes(token_id) for token_id in range(size)],
            special_token_ids=[each for each in self._special_token_ids if each < size],
            bos_token_id=None,
            eos_token_id=None,
        )
        return LLTokenizer(TokenizerWrapper(tokens))
