"""Structured outputs: restricting the next token, so that the output matches a grammar.

The automaton is llguidance's. It walks the vocabulary as a trie of the bytes that the detokenizer
produces, so the tokenizer's own rules don't matter here.
"""

import importlib.util
from collections.abc import Iterable, Sequence
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
"""Maximum number of compiled grammars that are kept for later requests. The least recently used is
dropped first."""


class Grammar:
    """The grammar of one output, and its state after the output's tokens.

    Each method first consumes the tokens that were appended since the last call. The state is a
    function of the output's tokens, so a preemption, which keeps them, needs no handling.
    """

    def __init__(self, matcher: "LLMatcher") -> None:
        self._matcher = matcher
        self._num_taken = 0
        self._could_end = [matcher.is_accepting()]
        """One entry before each token and one after the last; kept if there are stop strings."""

    def allowed_tokens(self, row: SamplingRow) -> bytearray:
        """Return one bit per token of the vocabulary, lowest bit first: 1 if it may come next.

        Stop tokens are allowed wherever the grammar allows the output to end.
        """
        self._catch_up(row)
        return self._allowed_now(row)

    def count_allowed(self, row: SamplingRow, tokens: Sequence[int]) -> int:
        """Return how many of ``tokens``, the first ones, may come next, one after the other."""
        self._catch_up(row)
        count: int = self._matcher.validate_tokens(list(tokens))
        return count

    def allowed_after(self, row: SamplingRow, guesses: Sequence[int]) -> bytearray:
        """Return the tokens that may come after some guesses, as ``allowed_tokens`` does.

        The state stays that of the row's own tokens. If the guesses are not allowed, the result is
        what may come instead of them.
        """
        self._catch_up(row)
        count = self._matcher.try_consume_tokens(list(guesses))
        allowed = self._allowed_now(row)
        if count:
            self._matcher.rollback(count)
        return allowed

    def _allowed_now(self, row: SamplingRow) -> bytearray:
        allowed = bytearray(self._matcher.compute_bitmask())
        if self._matcher.is_accepting():
            for token_id in row.stop_token_ids:
                if token_id // 8 < len(allowed):
                    allowed[token_id // 8] |= 1 << token_id % 8
        return allowed

    def is_complete(self, row: SamplingRow) -> bool:
        """Return whether the output matches the grammar and no token may be added to it."""
        self._catch_up(row)
        return self._matcher.is_stopped() and self._matcher.is_accepting()

    def could_end(self, row: SamplingRow) -> Sequence[bool]:
        """Return whether the output matched the grammar before each of its tokens, and does now.

        It is known for requests with stop strings only.
        """
        self._catch_up(row)
        return self._could_end

    @property
    def error(self) -> str:
        """Reason why the matcher gave up and allows no token; usually, it took too long."""
        return explain(self._matcher)

    def _catch_up(self, row: SamplingRow) -> None:
        new = row.token_ids[row.num_prompt_tokens + self._num_taken :]
        self._num_taken += len(new)
        if row.params.stop:
            for token_id in new:
                self._matcher.consume_tokens([token_id])
                self._could_end.append(self._matcher.is_accepting())
        elif new:
            self._matcher.consume_tokens(new.tolist())  # after a token that is not allowed, none is


class GrammarCompiler:
    """Compiler of grammars for the outputs of one model.

    A new grammar is compiled twice, first in a separate process; see ``grammar_check``. Meanwhile
    all requests of the engine wait. A compilation usually takes milliseconds, and at most
    ``MAX_COMPILE_SECONDS``. A server therefore compiles grammars in another thread first: this is
    the only part of the engine that is thread-safe.

    Args:
        tokenizer: source of each token's bytes.
        vocab_size: number of the model's logits.
        eos_token_ids: tokens that are never text, even if the tokenizer has text for them.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._special_token_ids = tokenizer.special_token_ids.union(eos_token_ids)
        self._compile = lru_cache(MAX_CACHED_GRAMMARS)(self._compile_source)

    def start(self, wanted: StructuredOutputsParams) -> Grammar:
        """Return the grammar of a new, empty output.

        Raises:
            ValueError: the grammar can't be used; the message names the field and the reason.
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
        """Trie of the bytes of all tokens; for 150,000 tokens it takes a second or two to build.

        It has no end-of-sequence token, because each request has its own stop tokens.
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
