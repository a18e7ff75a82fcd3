"""Exercise stream-text: give out text as it comes, and never take any of it back.

The idea. A client sees text while it is written. But a *stop string*, before which the text is to
end, may be spread over several tokens, and whoever has sent the first half of it can't take it
back. So what may become a stop string waits until the next token says whether it does; and nothing
else waits, since the client wants to see it now::

    stop string "END"
    tokens        se    a.    E     N     gli     E     ND
    held back                 E     EN            E
    given out     se    a.                ENgli         … and the text ends: "sea.ENgli"

Half of a character (an emoji is four bytes, which may be two tokens) waits too; that is done:
``_add`` is called with the new text of each token, "" if it ends within a character.

What you have, in ``self``:

    _stops                         the stop strings
    _held_back                     what waits: the end of the text so far
    _pieces                        what was given out, a list of strings to append to
    _find_stop(text, num_old)      (where it ends, stop string) of the one that is complete first in
                                   text, behind its first num_old characters; or None
    num_tokens                     how many have come, this one included
    _params.min_tokens             stop strings count only from the token after so many
    _params.include_stop_str_in_output

What to write: ``_num_undecided`` and ``_add``.

How it is checked: random tokens and stop strings that begin alike; after each token, what was given
out is compared with what is certain.

    minimal-vllm learn check stream-text
"""

from minimal_vllm.text.detokenizer import Detokenizer


class MyDetokenizer(Detokenizer):
    """A detokenizer with two methods of your own."""

    def _add(self, new: str) -> str | None:
        """Take the text of one more token; the stop string with which all ends, or None.

        All that is certain goes to ``self._pieces``, the rest to ``self._held_back``. If a stop
        string is complete, the text ends before it, or behind it if it is to be included, and
        nothing is held back.
        """
        raise NotImplementedError(
            "text = what was held back + new; if stop strings count already, _find_stop in it, "
            "behind what was held back; give out what stands before the stop, or else all but the "
            "last _num_undecided(text) characters"
        )

    def _num_undecided(self, text: str) -> int:
        """The length of the longest end of the text with which a stop string may begin."""
        raise NotImplementedError(
            "for each length below that of the longest stop string, the greatest first: does a "
            "stop string start with so many last characters of the text?"
        )
