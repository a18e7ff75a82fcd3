"""Reading one call that is written as a JSON object: ``{"name": …, "arguments": {…}}``."""

import json
import re
from enum import Enum, auto

from minimal_vllm.server.message import CallWriter, MessageDelta

HEAD = re.compile(
    r"""\{ _ "name" _:_ ("(?:[^"\\]|\\.)*") _,_ "(?:arguments|parameters)" _:_ (?=\{)""".replace(
        "_", r"[ \t\n\r]*"
    ),
    re.VERBOSE,
)
"""Beginning of nearly all calls, up to the arguments, which are then passed on as they arrive."""

MAX_HEAD = 1000
"""Maximum length of ``HEAD`` in characters: it is matched again with each piece."""

OUTSIDE_STRINGS = frozenset(' \t\n\r{}[]",:+-.0123456789eEtrufalsn')
"""Characters of JSON that may stand outside strings."""


class CallObject:
    """Reads one call, which begins with ``{``.

    Once its arguments begin, it is a call, even if the rest is malformed; before that it is not.
    Keys in another order are understood once the object is complete.
    """

    class State(Enum):
        """Part of the object that is read next, or its result."""

        HEAD = auto()
        ARGUMENTS = auto()
        TAIL = auto()
        CALL = auto()
        """The object has ended and was a call."""
        NO_CALL = auto()
        """The object has ended and was no call: ``text`` is its text."""

    def __init__(self, calls: CallWriter) -> None:
        self._calls = calls
        self._end = ObjectEnd()
        self.state = self.State.HEAD
        self.text = ""
        """All text of the object, until it is known to be a call."""

    def read(self, text: str, part: MessageDelta) -> str:
        """Read the next piece of text, and return the part of it that follows the object."""
        if self.state is self.State.HEAD:
            text = self._read_head(text, part)
        if self.state is self.State.ARGUMENTS:
            text = self._read_arguments(text, part)
        if self.state is self.State.TAIL:
            text = self._read_tail(text)
        return text

    def _read_head(self, text: str, part: MessageDelta) -> str:
        known = len(self.text)
        self.text += text
        head = HEAD.match(self.text, 0, MAX_HEAD) if known < MAX_HEAD else None
        if head and isinstance(name := _parse(head[1]), str):
            self._calls.begin(part, name)
            self._end = ObjectEnd()
            self.state = self.State.ARGUMENTS
            return self.text[head.end() :]
        end = self._end.find(text)
        if end is None:
            return ""
        self.text = self.text[: known + end]
        self.state = self.State.CALL if self._write_whole(part) else self.State.NO_CALL
        return text[end:]

    def _read_arguments(self, text: str, part: MessageDelta) -> str:
        end = self._end.find(text)
        self._calls.add_arguments(part, text[:end])
        if end is None:
            return ""
        self._end = ObjectEnd(depth=1)
        self.state = self.State.TAIL
        return text[end:]

    def _read_tail(self, text: str) -> str:
        end = self._end.find(text)
        if end is None:
            return ""
        self.state = self.State.CALL
        return text[end:]

    def _write_whole(self, part: MessageDelta) -> bool:
        match _parse(self.text):
            case {"name": str(name), "arguments": dict(arguments)} | {
                "name": str(name),
                "parameters": dict(arguments),
            }:
                self._calls.begin(part, name)
                self._calls.add_arguments(part, json.dumps(arguments, ensure_ascii=False))
                return True
        return False


class ObjectEnd:
    """Finds the end of a JSON object that arrives in pieces: its last brace, or its first error.

    Args:
        depth: number of brackets that are open before the first piece.
    """

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._in_string = False
        self._escaped = False

    def find(self, text: str) -> int | None:
        """Return the number of characters before the object's end; None: it goes on."""
        for index, character in enumerate(text):
            if self._in_string:
                self._in_string = self._escaped or character != '"'
                self._escaped = not self._escaped and character == "\\"
            elif character not in OUTSIDE_STRINGS:
                return index
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return index + 1
        return None


def _parse(text: str) -> object:
    """Return the parsed JSON; None if the text isn't JSON, or can't be written as UTF-8."""
    try:
        parsed = json.loads(text)
        json.dumps(parsed, ensure_ascii=False).encode()  # fails for unpaired surrogates
    except (ValueError, RecursionError):
        return None
    return parsed
