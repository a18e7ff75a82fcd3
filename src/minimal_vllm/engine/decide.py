"""Decisions that could differ between ranks, because they depend on the time or on a user's code.

All other decisions follow from the requests and their tokens, which all ranks have. So only rank 0
reads the clock or asks a user's guesser, and sends the result to the other ranks.
"""

from collections.abc import Callable, Sequence
from typing import Any

from minimal_vllm.speculation.interface import Guesser
from minimal_vllm.step.plan import ScheduledRequest
from minimal_vllm.step.request import Request

Decide = Callable[[Callable[[], Any]], Any]
"""Returns a function's result in all ranks; only rank 0 calls the function."""


def alone(function: Callable[[], Any]) -> Any:
    """Return a function's result, in an engine of one rank."""
    return function()


class DecidedGuesser:
    """Guesser that is only asked in rank 0; see ``Guesser``.

    Args:
        guesser: the guesser inside.
        decide: calls a function in rank 0, and tells the other ranks its result.
    """

    def __init__(self, guesser: Guesser, decide: Decide) -> None:
        self._guesser = guesser
        self._decide = decide

    def propose(
        self, entries: Sequence[ScheduledRequest], counts: Sequence[int]
    ) -> Sequence[Sequence[int]]:
        """Return rank 0's guesses."""
        guesses: Sequence[Sequence[int]]
        guesses = self._decide(lambda: self._guesser.propose(entries, counts))
        return guesses

    def forget(self, request: Request) -> None:
        """Drop what rank 0's guesser remembers about a request."""
        self._decide(lambda: self._guesser.forget(request))
