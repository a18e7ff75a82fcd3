"""The interface of a guesser, which proposes the next tokens of requests."""

import logging
from collections.abc import Sequence
from typing import Protocol

from minimal_vllm.step.plan import ScheduledRequest
from minimal_vllm.step.request import Request

logger = logging.getLogger(__name__)


class Guesser(Protocol):
    """Proposes the tokens that requests will probably sample next.

    Guesses change no output. Wrong ones only cost time.
    """

    def propose(
        self, entries: Sequence[ScheduledRequest], counts: Sequence[int]
    ) -> Sequence[Sequence[int]]:
        """Return guesses at the tokens that follow each request's ``token_ids``.

        Args:
            entries: requests that sample in the step that is being planned.
            counts: maximum number of guesses for each of them. Fewer, or none, may be returned.
        """
        ...

    def forget(self, request: Request) -> None:
        """Drop what is remembered about a request, which has ended or lost its blocks."""
        ...


class CheckedGuesser:
    """Guesser that passes on what another one guesses, as far as it is usable.

    Too many guesses are cut off, and so is everything from the first that can't be sampled or that
    nothing can follow. If the guesser raises an error, there are no guesses in that step.

    Args:
        guesser: the guesser inside.
        vocab_size: number of the model's tokens.
    """

    def __init__(self, guesser: Guesser, vocab_size: int) -> None:
        self._guesser = guesser
        self._vocab_size = vocab_size
        self._has_failed = False

    def propose(
        self, entries: Sequence[ScheduledRequest], counts: Sequence[int]
    ) -> list[list[int]]:
        """Return the usable guesses, at most ``counts`` of them."""
        try:
            proposals = self._guesser.propose(entries, counts)
            return [
                self._usable(entry.request, tokens[:count])
                for entry, tokens, count in zip(entries, proposals, counts, strict=True)
            ]
        except Exception:
            self._note_failure()
            return [[] for _ in entries]

    def forget(self, request: Request) -> None:
        """Drop what is remembered about a request."""
        try:
            self._guesser.forget(request)
        except Exception:
            self._note_failure()

    def _usable(self, request: Request, guesses: Sequence[int]) -> list[int]:
        tokens: list[int] = []
        for guess in guesses:
            if not 0 <= guess < self._vocab_size or guess in request.stop_token_ids:
                break
            tokens.append(int(guess))
        if request.grammar is None or not tokens:
            return tokens
        return tokens[: request.grammar.count_allowed(request, tokens)]

    def _note_failure(self) -> None:
        if not self._has_failed:  # one that always fails would fill the log
            logger.exception("The guesser failed; the engine goes on without its guesses")
        self._has_failed = True


class Placeholders:
    """Guesser that proposes a 0 for each guess, because the runner's draft model will make it."""

    def propose(
        self, entries: Sequence[ScheduledRequest], counts: Sequence[int]
    ) -> list[list[int]]:
        """Return a zero for each guess that may be made."""
        del entries
        return [[0] * count for count in counts]

    def forget(self, request: Request) -> None:
        """Do nothing: nothing is remembered."""


class EaglePlaceholders(Placeholders):
    """Placeholders for the guesses of an EAGLE-3 head, which reads what the model has computed.

    A request gets none in a step that computes several of its tokens, because the hidden state
    before the last one doesn't exist yet. It gets none in the step that admits it either, because
    blocks that it shares may be computed in the same step.
    """

    def propose(
        self, entries: Sequence[ScheduledRequest], counts: Sequence[int]
    ) -> list[list[int]]:
        """Return a zero for each guess that may be made."""
        can_guess = [
            entry.num_new == 1 and entry.start > 0 and not entry.cached_blocks for entry in entries
        ]
        most = [count * able for count, able in zip(counts, can_guess, strict=True)]
        return super().propose(entries, most)
