"""Messages that are built from the model's text piece by piece, and the readers that build them."""

import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass, field


@dataclass(slots=True)
class ToolCallDelta:
    """New part of a tool call. Only the first part of a call has an id and a name."""

    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class MessageDelta:
    """New part of a message; all of it, if the text is read in one go."""

    reasoning: str = ""
    content: str = ""
    calls: dict[int, ToolCallDelta] = field(default_factory=dict)
    """New parts of calls, by the call's index in the message."""

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.calls)


class CallWriter:
    """Writes the calls of one message into its deltas, one call after the other.

    Args:
        parallel: whether a message may have several calls; if not, only the first is kept.
    """

    def __init__(self, parallel: bool) -> None:
        self._parallel = parallel
        self._index = -1

    def begin(self, part: MessageDelta, name: str) -> None:
        """Begin a call of the function ``name``."""
        self._index += 1
        if self._is_kept:
            part.calls[self._index] = ToolCallDelta(f"chatcmpl-tool-{uuid.uuid4().hex}", name)

    def add_arguments(self, part: MessageDelta, text: str) -> None:
        """Append text to the arguments of the last call."""
        if self._is_kept:
            part.calls.setdefault(self._index, ToolCallDelta()).arguments += text

    @property
    def has_begun(self) -> bool:
        """True if a call has begun."""
        return self._index >= 0

    @property
    def _is_kept(self) -> bool:
        return self._parallel or self._index == 0


class Reader(ABC):
    """Reads the text of one message piece by piece.

    However the text is cut into pieces, the deltas add up to the same message. Text is held back
    only while it may turn out to be something else, such as the beginning of a tag.
    """

    @abstractmethod
    def read(self, text: str, part: MessageDelta) -> None:
        """Read the next piece of text, and add its content to ``part``."""

    @abstractmethod
    def finish(self, part: MessageDelta) -> None:
        """Add the text that was held back to ``part``: the text has ended."""


class ContentReader(Reader):
    """Reader that takes the whole text as content."""

    def read(self, text: str, part: MessageDelta) -> None:
        """Add the text to the content."""
        part.content += text

    def finish(self, part: MessageDelta) -> None:
        """Do nothing: no text is held back."""


def overlap(text: str, tag: str) -> int:
    """Return the number of characters at the text's end that may be the beginning of a tag."""
    longest = min(len(text), len(tag) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(tag[:n])), 0)
