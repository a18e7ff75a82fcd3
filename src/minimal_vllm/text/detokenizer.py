"""Incremental detokenization, and the search for stop strings."""

import codecs
from collections.abc import Iterable, Sequence
from itertools import islice, repeat

from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.text.tokenizer import Tokenizer

MAX_CHARACTER_BYTES = 4
"""Maximum length of a character in UTF-8."""


class Detokenizer:
    """Incremental decoder of one completion's tokens, which also looks for stop strings.

    Text is released only once it is certain, so nothing that was streamed has to be taken back. Two
    things are held back: the bytes of an incomplete character, and text that may become a stop
    string. The cost per token does not grow with the text.

    The stop string that is complete first ends the text. If several are complete with the same
    character, the longest counts.

    Args:
        tokenizer: decodes the tokens.
        params: the stop strings, and how to apply them.
        prompt_token_ids: tokens of the prompt, which the text continues.
    """

    def __init__(
        self, tokenizer: Tokenizer, params: SamplingParams, prompt_token_ids: Sequence[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_token_ids if params.skip_special_tokens else frozenset()
        self._params = params
        self._stops = params.stop_strings

        self.num_tokens = 0
        """Number of tokens appended so far."""
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._at_start = True
        self._held_back = ""
        self._pieces: list[str] = []
        self._num_streamed = 0
        self._continue_prompt(prompt_token_ids)

    def _continue_prompt(self, prompt_token_ids: Sequence[int]) -> None:
        """Start where the prompt's text ends, which may be between words or inside a character."""
        shown = (token for token in reversed(prompt_token_ids) if token not in self._skipped)
        not_empty = filter(None, map(self._tokenizer.token_bytes, shown))
        tail = list(islice(not_empty, MAX_CHARACTER_BYTES))  # each has at least one byte
        self._at_start = not tail
        self._utf8.decode(b"".join(reversed(tail)))

    @property
    def text(self) -> str:
        """Text so far, without the part that is held back."""
        return "".join(self._pieces)

    def new_text(self) -> str:
        """Return the part of ``text`` that earlier calls have not returned."""
        new = "".join(self._pieces[self._num_streamed :])
        self._num_streamed = len(self._pieces)
        return new

    def append(
        self, token_ids: Iterable[int], could_end: Iterable[bool] = repeat(True)
    ) -> str | None:
        """Append the next tokens of the completion, until a stop string is found.

        Args:
            token_ids: the tokens. Leave out one that ends the completion, unless its text is
                wanted.
            could_end: for each token, whether the completion may end before it. A stop string
                doesn't count if it begins where the completion may not end, because the text would
                then not be valid.

        Returns:
            The stop string that was found, or None. ``text`` then ends with the stop string if
            ``include_stop_str_in_output`` is set, else before it, and nothing may be appended.
        """
        for token_id, may_stop in zip(token_ids, could_end, strict=False):
            self.num_tokens += 1
            new = self._utf8.decode(self._bytes(token_id))
            if not (self._stops and may_stop):  # no stop string can begin here
                self._pieces.append(self._held_back + new)
                self._held_back = ""
                continue
            stop = self._add(new)
            if stop is not None:
                return stop
        return None

    def finish(self) -> None:
        """Release the text that was held back; an incomplete character becomes U+FFFD."""
        self._pieces.append(self._held_back + self._utf8.decode(b"", final=True))
        self._held_back = ""

    def _bytes(self, token_id: int) -> bytes:
        if token_id in self._skipped:
            return b""
        if self._at_start:
            self._at_start = False
            return self._tokenizer.first_token_bytes(token_id)
        return self._tokenizer.token_bytes(token_id)

    def _add(self, new: str) -> str | None:
        text = self._held_back + new
        stop = None
        certain = len(text) - self._num_undecided(text)
        if self.num_tokens > self._params.min_tokens:
            found = self._find_stop(text, len(self._held_back))
            if found is not None:
                end, stop = found
                certain = end if self._params.include_stop_str_in_output else end - len(stop)
                text = text[:certain]
                self._utf8.reset()
        self._pieces.append(text[:certain])
        self._held_back = text[certain:]
        return stop

    def _find_stop(self, text: str, num_old: int) -> tuple[int, str] | None:
        """Return the first stop string that ends after ``num_old`` characters, and its end."""
        found = [
            (start + len(stop), -len(stop), stop)
            for stop in self._stops
            if (start := text.find(stop, max(0, num_old - len(stop) + 1))) >= 0
        ]
        if not found:
            return None
        end, _, stop = min(found)
        return end, stop

    def _num_undecided(self, text: str) -> int:
        """Return the length of the longest suffix of ``text`` that a stop string begins with."""
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(len(text), longest), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) and stop != end for stop in self._stops):
                return length
        return 0
