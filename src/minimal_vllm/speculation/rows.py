"""Rows of the sampler at the places of guesses: the request, as if the guesses before held."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from minimal_vllm.outputs import FlatLogprobs
from minimal_vllm.sampling.grammar import Grammar
from minimal_vllm.sampling.row import Constraint, SamplingRow
from minimal_vllm.sampling.sampler import Sampled
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.plan import Plan
from minimal_vllm.step.request import Request


@dataclass(slots=True)
class GuessedRow:
    """A request with some guesses behind its tokens; see ``SamplingRow``."""

    params: SamplingParams
    token_ids: "array[int]"
    """The request's tokens and the guesses."""
    num_prompt_tokens: int
    seed: int
    stop_token_ids: frozenset[int]
    bad_word_ids: tuple[tuple[int, ...], ...]
    grammar: Constraint | None
    """The request's rule, at this place."""
    next_output_index: int
    """Index, in the output, of the token that is sampled after the guesses."""


def guessed_row(request: Request, guesses: Sequence[int]) -> GuessedRow:
    """Return the row of the place after some guesses."""
    rule = request.grammar
    return GuessedRow(
        request.params,
        request.token_ids + array("i", guesses),
        request.num_prompt_tokens,
        request.seed,
        request.stop_token_ids,
        request.bad_word_ids,
        GuessedGrammar(rule, request, guesses) if isinstance(rule, Grammar) else rule,
        request.num_output_tokens + len(guesses),
    )


@dataclass(frozen=True, slots=True)
class GuessedGrammar:
    """A grammar as it is after some guesses, while the grammar itself stays where it is."""

    _grammar: Grammar
    _request: Request
    _guesses: Sequence[int]

    def allowed_tokens(self, _: SamplingRow) -> bytearray:
        """Return the tokens that may come after the guesses; see ``Constraint``."""
        return self._grammar.allowed_after(self._request, self._guesses)

    def count_allowed(self, _: SamplingRow, tokens: Sequence[int]) -> int:
        """Return how many of ``tokens`` may come after the guesses."""
        both = [*self._guesses, *tokens]
        return max(self._grammar.count_allowed(self._request, both) - len(self._guesses), 0)

    def is_complete(self, _: SamplingRow) -> bool:
        """Return False: only the output itself ends a request."""
        return False

    def could_end(self, _: SamplingRow) -> Sequence[bool]:
        """Return nothing: only the output itself ends a request."""
        return ()

    @property
    def error(self) -> str:
        """Reason why no token is allowed."""
        return self._grammar.error


def sampling_rows(plan: Plan) -> list[SamplingRow]:
    """Return the row of each of a step's logits: ``num_logits`` for each request, in order."""
    rows: list[SamplingRow] = []
    for entry in plan.scheduled:
        if entry.num_logits == 1:  # as without speculation
            rows.append(entry.request)
        else:
            places = range(entry.num_logits)
            rows += [guessed_row(entry.request, entry.guesses[:place]) for place in places]
    return rows


def accept(plan: Plan, sampled: Sampled) -> Sampled:
    """Keep the tokens of each request up to the first that differs from its guess.

    A row after a wrong guess was computed for another text, so its token means nothing.

    Args:
        plan: plan of the step.
        sampled: a list of one token, or of none, for each row of ``sampling_rows``.

    Returns:
        A list of tokens for each request that samples: right guesses, and one more token.
    """
    tokens, logprobs, first = [], [], 0
    for entry in plan.scheduled:
        if entry.num_logits:
            rows = sampled.tokens[first : first + entry.num_logits]
            count = count_kept(entry.guesses, rows)
            tokens.append([row[0] for row in rows[:count]])
            logprobs.append(FlatLogprobs.joined(sampled.logprobs[first : first + count]))
            first += entry.num_logits
    return Sampled(tokens, logprobs)


def count_kept(guesses: Sequence[int], rows: Sequence[Sequence[int]]) -> int:
    """Return how many of a request's sampled tokens are its output, given its guesses.

    Args:
        guesses: guesses at the tokens of all rows but the last.
        rows: the token sampled at each place; an empty list where there is none.
    """
    for place, row in enumerate(rows):
        if not row:
            return place
        if place == len(guesses) or row[0] != guesses[place]:
            return place + 1
    return len(rows)
