"""Decisions that ranks can't make alike, each by itself, because they depend on the time.

All else that an engine decides follows from its requests and their tokens, which all ranks have.
So rank 0 looks at the clock, and asks a guesser of the user's, and tells the others the result.
"""

from collections.abc import Callable, Sequence
from typing import Any

from minimal_vllm.speculation.interface import Guesser
from minimal_vllm.step.plan import ScheduledRequest
from minimal_vllm.step.request import Request

Decide = Callable[[Callable[[], Any]], Any]
"""Returns in all ranks what a function returns in rank 0, where alone it is called."""


def alone(function: Callable[[], Any]) -> Any:
    """Call a function, in the only rank."""
    return function()


class DecidedGuesser:
    """Guesser that is only asked in rank 0; see ``Guesser``.

    Args:
        guesser: the guesser inside.
        decide: the way to the other ranks.
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
        """Drop what is remembered about a request, where something is."""
        self._decide(lambda: self._guesser.forget(request))
