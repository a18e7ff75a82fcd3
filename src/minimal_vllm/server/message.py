"""Messages that are built from the model's text piece by piece, and the readers that build them."""

import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

TextKind = Literal["reasoning", "content"]


@dataclass(slots=True)
class TextDelta:
    """New text of the reasoning or of the content."""

    kind: TextKind
    text: str


@dataclass(slots=True)
class ToolCallDelta:
    """New part of a tool call. Only the first part of a call has an id and a name."""

    index: int
    """Index of the call in the message."""
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class MessageDelta:
    """New parts of a message, in the order in which the model wrote them.

    If the text is read in one go, they are the whole message.
    """

    parts: list[TextDelta | ToolCallDelta] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.parts)

    @property
    def reasoning(self) -> str:
        """All new text of the reasoning."""
        return self._text("reasoning")

    @property
    def content(self) -> str:
        """All new text of the content."""
        return self._text("content")

    @property
    def calls(self) -> list[ToolCallDelta]:
        """New parts of calls, at most one for each call."""
        return [part for part in self.parts if isinstance(part, ToolCallDelta)]

    def without_reasoning(self) -> "MessageDelta":
        """Return the other parts."""
        return MessageDelta([part for part in self.parts if not _is_reasoning(part)])

    def add_text(self, kind: TextKind, text: str) -> None:
        """Append text, which may be empty."""
        last = self.parts[-1] if self.parts else None
        if isinstance(last, TextDelta) and last.kind == kind:
            last.text += text
        elif text:
            self.parts.append(TextDelta(kind, text))

    def add_arguments(self, index: int, text: str) -> None:
        """Append text to the arguments of the call that is being written."""
        last = self.parts[-1] if self.parts else None
        if isinstance(last, ToolCallDelta):
            last.arguments += text
        elif text:
            self.parts.append(ToolCallDelta(index, arguments=text))

    def _text(self, kind: TextKind) -> str:
        texts = (part for part in self.parts if isinstance(part, TextDelta))
        return "".join(part.text for part in texts if part.kind == kind)


def _is_reasoning(part: TextDelta | ToolCallDelta) -> bool:
    return isinstance(part, TextDelta) and part.kind == "reasoning"


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
            call_id = f"chatcmpl-tool-{uuid.uuid4().hex}"
            part.parts.append(ToolCallDelta(self._index, call_id, name))

    def add_arguments(self, part: MessageDelta, text: str) -> None:
        """Append text to the arguments of the last call."""
        if self._is_kept:
            part.add_arguments(self._index, text)

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
        part.add_text("content", text)

    def finish(self, part: MessageDelta) -> None:
        """Do nothing: no text is held back."""


def overlap(text: str, tag: str) -> int:
    """Return the number of characters at the text's end that may be the beginning of a tag."""
    longest = min(len(text), len(tag) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(tag[:n])), 0)
