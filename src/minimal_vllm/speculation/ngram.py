"""Guessing by looking back: what followed the last few tokens the last time that they occurred.

It needs no model, and pays where text repeats: summaries, edits of code, JSON. Source: Saxena,
"Prompt Lookup Decoding", 2023, https://github.com/apoorvumang/prompt-lookup-decoding.
"""

from array import array
from collections.abc import Sequence

from minimal_vllm.step.plan import ScheduledRequest
from minimal_vllm.step.request import Request

MAX_PLACES = 8
"""Maximum number of earlier places that are compared, the most recent first. It bounds the time of
a lookup."""
ITEM = array("i").itemsize
NOWHERE = -1


class NgramIndex:
    """The places at which each n-gram of a growing list of tokens occurred.

    Args:
        shortest: number of tokens in the n-grams of the index.
        longest: number of tokens after which a longer match is no better.
    """

    def __init__(self, shortest: int, longest: int) -> None:
        self._shortest, self._longest = shortest, longest
        self._latest: dict[bytes, int] = {}  # n-gram -> place after its latest occurrence
        self._earlier = array("i")  # number of the n-gram -> place of its occurrence before

    def extend(self, tokens: "array[int]") -> None:
        """Add the n-grams that a token now follows. The cost is linear in the number of them."""
        shortest, latest, earlier = self._shortest, self._latest, self._earlier
        first = len(earlier)
        raw = tokens[first:].tobytes()
        width = shortest * ITEM
        for place in range(first + shortest, len(tokens)):
            start = (place - shortest - first) * ITEM
            gram = raw[start : start + width]
            earlier.append(latest.get(gram, NOWHERE))
            latest[gram] = place

    def find(self, tokens: "array[int]") -> int:
        """Return the place after the longest match of the last tokens, or ``NOWHERE``.

        Of equally long matches, it is the most recent. The cost does not depend on the number of
        tokens.
        """
        if len(tokens) < self._shortest:
            return NOWHERE
        place = self._latest.get(tokens[-self._shortest :].tobytes(), NOWHERE)
        best, longest = NOWHERE, 0
        for _ in range(MAX_PLACES):
            if place == NOWHERE or longest == self._longest:
                break
            length = self._match_length(tokens, place)
            if length > longest:
                best, longest = place, length
            place = self._earlier[place - self._shortest]
        return best

    def _match_length(self, tokens: "array[int]", place: int) -> int:
        """Return how many tokens before ``place`` are those at the end, at most ``longest``."""
        length = self._shortest
        most = min(self._longest, place)
        while length < most and tokens[place - 1 - length] == tokens[-1 - length]:
            length += 1
        return length


class NgramGuesser:
    """Guesses what followed the last tokens of a request earlier in its prompt or output.

    Args:
        shortest: minimum number of last tokens that must match.
        longest: number of last tokens beyond which a longer match is no better.
    """

    def __init__(self, shortest: int, longest: int) -> None:
        self._shortest, self._longest = shortest, longest
        self._indices: dict[Request, NgramIndex] = {}

    def propose(
        self, entries: Sequence[ScheduledRequest], counts: Sequence[int]
    ) -> list[list[int]]:
        """Return the tokens that followed the longest match, for each request; none without one."""
        return [
            self._guess(entry.request, count) for entry, count in zip(entries, counts, strict=True)
        ]

    def forget(self, request: Request) -> None:
        """Drop the index of a request."""
        self._indices.pop(request, None)

    def _guess(self, request: Request, count: int) -> list[int]:
        tokens = request.token_ids
        index = self._indices.get(request)
        if index is None:
            index = self._indices[request] = NgramIndex(self._shortest, self._longest)
        index.extend(tokens)
        place = index.find(tokens)
        return [] if place == NOWHERE else follow(tokens, place, count)


def follow(tokens: "array[int]", place: int, count: int) -> list[int]:
    """Return the ``count`` tokens from ``place`` on; after the last token, its guesses go on.

    So a text that repeats itself with a period of two tokens is continued for any ``count``.
    """
    guesses = tokens[place : place + count].tolist()
    period = len(tokens) - place
    while len(guesses) < count:
        guesses.append(guesses[len(guesses) - period])
    return guesses
