"""What is made of the model's text: parts of a message, and the readers that write them."""

import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass, field


@dataclass(slots=True)
class ToolCallDelta:
    """What is new of a tool call; only its first part has an id and a name."""

    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class MessageDelta:
    """What is new of a message; of one that is read in one go, all of it."""

    reasoning: str = ""
    content: str = ""
    calls: dict[int, ToolCallDelta] = field(default_factory=dict)
    """By their place in the message."""

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.calls)


class CallWriter:
    """Puts the calls of one message into its parts, one after the other.

    Args:
        parallel: whether there may be several; if not, only the first is kept.
    """

    def __init__(self, parallel: bool) -> None:
        self._parallel = parallel
        self._place = -1

    def begin(self, part: MessageDelta, name: str) -> None:
        """Begin a call."""
        self._place += 1
        if self._is_kept:
            part.calls[self._place] = ToolCallDelta(f"chatcmpl-tool-{uuid.uuid4().hex}", name)

    def add_arguments(self, part: MessageDelta, text: str) -> None:
        """Continue the call."""
        if self._is_kept:
            part.calls.setdefault(self._place, ToolCallDelta()).arguments += text

    @property
    def has_begun(self) -> bool:
        """Whether there has been a call."""
        return self._place >= 0

    @property
    def _is_kept(self) -> bool:
        return self._parallel or self._place == 0


class Reader(ABC):
    """Reads the text of one message as it comes; however it is cut, the parts add up to the same.

    What is held back is only what may turn out to be something else, such as a tag's beginning.
    """

    @abstractmethod
    def read(self, text: str, part: MessageDelta) -> None:
        """Put what the next piece of text says into ``part``."""

    @abstractmethod
    def finish(self, part: MessageDelta) -> None:
        """Put what was held back into ``part``: no more text will come."""


class ContentReader(Reader):
    """All is content."""

    def read(self, text: str, part: MessageDelta) -> None:
        """As it is."""
        part.content += text

    def finish(self, part: MessageDelta) -> None:
        """Nothing is held back."""


def overlap(text: str, tag: str) -> int:
    """How many characters at the text's end may be the beginning of a tag."""
    longest = min(len(text), len(tag) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(tag[:n])), 0)
