"""Text that grows with its tokens."""

import codecs
from collections.abc import Iterable, Sequence
from itertools import islice, repeat

from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.text.tokenizer import Tokenizer

MAX_CHARACTER_BYTES = 4
"""The length of the longest character in UTF-8."""


class Detokenizer:
    """Turns the tokens of one completion into text as they come, and looks for stop strings.

    Text is given out only when it is certain, so nothing that was streamed needs to be taken
    back. Two things are held back: the bytes of a character that has not come in whole, and the
    beginning of what may become a stop string. A token's cost does not grow with the text.

    Of several stop strings the one that is complete first ends the text; of those that are
    complete at once, the longest.
    """

    def __init__(
        self, tokenizer: Tokenizer, params: SamplingParams, prompt_token_ids: Sequence[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_token_ids if params.skip_special_tokens else frozenset()
        self._params = params
        self._stops = params.stop_strings

        self.num_tokens = 0
        """How many were appended."""
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._at_start = True
        self._held_back = ""
        self._pieces: list[str] = []
        self._num_streamed = 0
        self._continue_prompt(prompt_token_ids)

    def _continue_prompt(self, prompt_token_ids: Sequence[int]) -> None:
        """Lets the text begin where the prompt's ends: between words, or within a character."""
        shown = (token for token in reversed(prompt_token_ids) if token not in self._skipped)
        not_empty = filter(None, map(self._tokenizer.token_bytes, shown))
        tail = list(islice(not_empty, MAX_CHARACTER_BYTES))  # of each at least a byte
        self._at_start = not tail
        self._utf8.decode(b"".join(reversed(tail)))

    @property
    def text(self) -> str:
        """The text so far, without what is held back."""
        return "".join(self._pieces)

    def new_text(self) -> str:
        """The part of ``text`` that this method has not returned yet."""
        new = "".join(self._pieces[self._num_streamed :])
        self._num_streamed = len(self._pieces)
        return new

    def append(
        self, token_ids: Iterable[int], could_end: Iterable[bool] = repeat(True)
    ) -> str | None:
        """Append the next tokens of the completion, until a stop string is found.

        Args:
            token_ids: the tokens, without one that ends the completion, unless its text is wanted.
            could_end: for each token, whether the completion may end before it. A stop string that
                begins elsewhere does not count: it would leave a text that is not what was asked
                for.

        Returns:
            The stop string with which the text ends, or, unless it is to be included, before
            which it ends; None if there is none yet. Nothing may be appended after one.
        """
        for token_id, may_stop in zip(token_ids, could_end, strict=False):
            self.num_tokens += 1
            new = self._utf8.decode(self._bytes(token_id))
            if not may_stop:
                self._pieces.append(self._held_back + new)
                self._held_back = ""
                continue
            stop = self._add(new)
            if stop is not None:
                return stop
        return None

    def finish(self) -> None:
        """Gives out what was held back; an unfinished character becomes U+FFFD."""
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
        """The end of the first stop string that ends after ``num_old`` characters, and itself."""
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
        """The length of the longest end of the text with which a stop string may begin."""
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(len(text), longest), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) and stop != end for stop in self._stops):
                return length
        return 0
