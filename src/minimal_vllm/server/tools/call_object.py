"""One call, written as a JSON object: ``{"name": …, "arguments": {…}}``."""

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
"""How nearly all calls begin, up to their arguments, which can then be passed on as they come."""

MAX_HEAD = 1000
"""A bound in characters: it is looked for again with each piece."""

OUTSIDE_STRINGS = frozenset(' \t\n\r{}[]",:+-.0123456789eEtrufalsn')
"""The characters of JSON that may stand there."""


class CallObject:
    """Reads one call, which begins with ``{``.

    From where its arguments begin, it is a call, whatever else may be wrong with it; a text that
    never gets there is none. Keys in another order are understood once the object is complete.
    """

    class State(Enum):
        """How far the object has come."""

        HEAD = auto()
        ARGUMENTS = auto()
        TAIL = auto()
        CALL = auto()
        """It has ended, and was one."""
        NO_CALL = auto()
        """It has ended, and was none: ``text`` is what there was."""

    def __init__(self, calls: CallWriter) -> None:
        self._calls = calls
        self._end = ObjectEnd()
        self.state = self.State.HEAD
        self.text = ""
        """All of it, until it is known to be a call."""

    def read(self, text: str, part: MessageDelta) -> str:
        """Take in the next piece of text; what of it comes behind the object."""
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
    """Finds where a JSON object ends that comes in pieces: at its last brace, or where it breaks.

    Args:
        depth: how many brackets are open before its first piece.
    """

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._in_string = False
        self._escaped = False

    def find(self, text: str) -> int | None:
        """How many characters of the next piece belong to the object, if it ends there."""
        for place, character in enumerate(text):
            if self._in_string:
                self._in_string = self._escaped or character != '"'
                self._escaped = not self._escaped and character == "\\"
            elif character not in OUTSIDE_STRINGS:
                return place
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return place + 1
        return None


def _parse(text: str) -> object:
    """What JSON says; None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
