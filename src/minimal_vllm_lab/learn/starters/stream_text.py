"""Exercise stream-text: stream text, but hold back possible stop strings.

The idea. A client receives text while it is generated. But a *stop string*, before which the text
ends, may be spread over several tokens, and its first half can't be taken back once it is sent. So
text that may become part of a stop string is held back until the next token decides. All other text
is given out at once, because the client is waiting for it::

    stop string "END"
    tokens        se    a.    E     N     gli     E     ND
    held back                 E     EN            E
    given out     se    a.                ENgli         … and the text ends: "sea.ENgli"

Incomplete characters are held back too (an emoji has four bytes, which may be two tokens). This is
done for you: ``_add`` is called with the new text of each token, which is "" if the token ends
within a character.

What you have, in ``self``:

    _stops                         the stop strings
    _held_back                     the end of the text, which is not given out yet
    _pieces                        the text that was given out, a list of strings to append to
    _find_stop(text, num_old)      (end index, stop string) of the first stop string that is
                                   complete in text, after its first num_old characters; or None
    num_tokens                     number of tokens so far, this one included
    _params.min_tokens             stop strings are ignored for this number of tokens
    _params.include_stop_str_in_output

What to write: ``_num_undecided`` and ``_add``.

How it is checked: random tokens and similar stop strings. After each token, the text that was given
out is compared with the text that is certain.

    minimal-vllm learn check stream-text
"""

from minimal_vllm.text.detokenizer import Detokenizer


class MyDetokenizer(Detokenizer):
    """A detokenizer with two methods of your own."""

    def _add(self, new: str) -> str | None:
        """Add the text of one more token, and return the stop string that ends the text, or None.

        Text that is certain goes to ``self._pieces``, the rest to ``self._held_back``. If a stop
        string is complete, the text ends before it, or after it if it is to be included in the
        output, and nothing is held back.
        """
        raise NotImplementedError

    def _num_undecided(self, text: str) -> int:
        """Return the length of the longest suffix with which a stop string may begin."""
        raise NotImplementedError
