"""Exercise guess-and-check: guess tokens by n-gram lookup, and keep the right ones.

The idea. Text repeats itself. What followed the last few tokens earlier in a text may follow them
again. So guess that, compute all guesses in one step, and sample a token at each place: at that of
each guess, and at one more. A guess is right if the token that was sampled at its place is the
same. Behind a wrong guess everything was computed for another text::

    text            the cat sat on the mat and the cat
    last 2 tokens                              the cat
    earlier         the cat ─► guess: sat on the
    sampled                                            sat  on   a   mat
    kept                                               sat  on   a

The third sampled token, "a", is kept although its guess was wrong: what comes before it is right.
The fourth is not. Without any guess, one token is sampled and kept.

What you have, in ``self``:

    _shortest      number of last tokens that must match
    _longest       number of last tokens beyond which a longer match is no better
    _latest        a dict for you: n-gram -> place after its latest occurrence
    _earlier       a list for you: of the n-gram that ends before place ``p``, at ``p - _shortest``,
                   the place after its occurrence before
    _match_length(tokens, place)   how many tokens before ``place`` are those at the end

What to write: ``MyIndex.extend``, ``MyIndex.find`` and ``count_kept``. ``NOWHERE`` means: no match.
An n-gram at the very end has no next token yet, so it does not count. Of at most ``MAX_PLACES``
occurrences, the most recent first, take the one with the longest match.

How it is checked: growing texts of few different tokens, compared with a search of the whole text;
and the time of a lookup in a long text. Sampled tokens with right and wrong guesses, some of them
with places where no token could be sampled.

    minimal-vllm learn check guess-and-check
"""

from array import array
from collections.abc import Sequence

from minimal_vllm.speculation.ngram import MAX_PLACES, NOWHERE, NgramIndex

__all__ = ["MAX_PLACES", "NOWHERE"]


class MyIndex(NgramIndex):
    """An index of n-grams with two methods of your own."""

    def extend(self, tokens: "array[int]") -> None:
        """Add the n-grams that a token now follows. ``tokens`` have grown since the last call."""
        raise NotImplementedError

    def find(self, tokens: "array[int]") -> int:
        """Return the place after the longest match of the last tokens, or ``NOWHERE``."""
        raise NotImplementedError


def count_kept(guesses: Sequence[int], rows: Sequence[Sequence[int]]) -> int:
    """Return how many of a request's sampled tokens are kept.

    Args:
        guesses: guesses at the tokens of all rows but the last.
        rows: the token sampled at each place, in a list of its own; an empty list where none could
            be sampled. Nothing is kept from there on.
    """
    raise NotImplementedError
