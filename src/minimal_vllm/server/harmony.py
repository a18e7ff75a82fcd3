"""The harmony format of gpt-oss: a turn of the model is several messages, each on a channel.

::

    <|channel|>analysis<|message|>…<|end|>                                         reasoning
    <|start|>assistant<|channel|>commentary<|message|>…<|end|>                     a preamble
    <|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{…}<|call|>
    <|start|>assistant<|channel|>final<|message|>…<|return|>                       the answer

The prompt ends with ``<|start|>assistant``. OpenAI's package openai-harmony reads the same, but
only with one vocabulary, which it fetches and whose hash it knows. A checkpoint's own tokenizer has
the tags as well, and its chat template writes them, so nothing has to be fetched here.

Source: https://github.com/openai/harmony/blob/main/docs/format.md
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from minimal_vllm.server.message import CallWriter, MessageDelta, Reader, overlap

MESSAGE = "<|message|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|channel|>")
"""Tags that end a message. The last two begin the next one, if the model forgets to end the first.
"""
MAX_HEADER = 1000
"""Maximum length of a header in characters; a longer one is text."""

_END = re.compile("|".join(map(re.escape, ENDS)))
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([^\s<]+)")
_BEGINNINGS = ("<|start|>", "<|channel|>", "<|constrain|>", MESSAGE, "to=")
"""Texts of which one begins a header."""

Kind = Literal["reasoning", "preamble", "answer", "call"]


class HarmonyReader(Reader):
    """Reader of one turn. Text without any header is the answer.

    Args:
        calls: writes the calls of functions.
        answer: reader of the text on the channel ``final``.
    """

    def __init__(self, calls: CallWriter, answer: Reader) -> None:
        self._calls = calls
        self._answer = answer
        self._held = ""
        self._kind: Kind | None = None
        """Kind of the message that is read; None: its header is."""
        self._begun: set[Kind] = set()

    def read(self, text: str, part: MessageDelta) -> None:
        """Read the next piece of text, and add its content to ``part``."""
        text, self._held = self._held + text, ""
        while text:
            if self._kind is None:
                text = self._read_header(text, part)
            else:
                text = self._read_message(self._kind, text, part)

    def finish(self, part: MessageDelta) -> None:
        """Add the text that was held back to ``part``; the beginning of a header is dropped."""
        if self._kind is not None:
            self._write(self._kind, self._held, part)
        elif not _may_be_header(self._held):
            self._write("answer", self._held, part)
        self._answer.finish(part)

    def _read_header(self, text: str, part: MessageDelta) -> str:
        header, found, rest = text.partition(MESSAGE)
        if not _may_be_header(text) or len(header) > MAX_HEADER:
            self._begin("answer", part)
            return text
        if not found:
            self._held = text
            return ""
        recipient, channel = _RECIPIENT.search(header), _CHANNEL.search(header)
        if recipient:
            self._begin("call", part)
            self._calls.begin(part, recipient[1])
        else:
            kinds: dict[str, Kind] = {"analysis": "reasoning", "commentary": "preamble"}
            self._begin(kinds.get(channel[1] if channel else "", "answer"), part)
        return rest

    def _begin(self, kind: Kind, part: MessageDelta) -> None:
        """Begin a message; a line break parts it from earlier text of the same field."""
        self._kind = kind
        if kind == "reasoning" and kind in self._begun:
            part.add_text("reasoning", "\n")
        elif kind in ("preamble", "answer") and self._begun & {"preamble", "answer"}:
            part.add_text("content", "\n")
        self._begun.add(kind)

    def _read_message(self, kind: Kind, text: str, part: MessageDelta) -> str:
        end = _END.search(text)
        if end is None:
            certain = len(text) - max(overlap(text, tag) for tag in ENDS)
            self._held = text[certain:]
            self._write(kind, text[:certain], part)
            return ""
        self._write(kind, text[: end.start()], part)
        self._kind = None
        begins_next = end[0] in _BEGINNINGS
        return text[end.start() if begins_next else end.end() :]

    def _write(self, kind: Kind, text: str, part: MessageDelta) -> None:
        match kind:
            case "reasoning":
                part.add_text("reasoning", text)
            case "preamble":
                part.add_text("content", text)
            case "answer":
                self._answer.read(text, part)
            case "call":
                self._calls.add_arguments(part, text)


def _may_be_header(text: str) -> bool:
    """Return whether a text is, or may become, the beginning of a header."""
    begin = text.lstrip()
    return any(begin.startswith(each) or each.startswith(begin) for each in _BEGINNINGS)


def fit_template(
    messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return messages and tools as gpt-oss' chat template accepts them.

    It fails if a message with calls has both reasoning and a preamble, of which one reasoning is
    made here, and if a tool has no description.
    """
    described = [
        {
            **tool,
            "function": {**tool["function"], "description": tool["function"]["description"] or ""},
        }
        for tool in tools
    ]
    return [_without_preamble(message) for message in messages], described


def _without_preamble(message: dict[str, Any]) -> dict[str, Any]:
    reasoning, content = message["reasoning_content"], message["content"]
    if not (message["tool_calls"] and reasoning and content):
        return message
    lines = content if isinstance(content, list) else [content]
    return {**message, "content": None, "reasoning_content": "\n".join([reasoning, *lines])}


class AnalysisTokens:
    """Counts the tokens of messages on the channel ``analysis``, tags included.

    Args:
        token_bytes: returns the UTF-8 bytes of a token.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._header = b""
        self._num_undecided = 0
        self._is_analysis = False

    def count(self, token_ids: Iterable[int]) -> int:
        """Read the next tokens, and return the number of them that are known to be reasoning."""
        num_known = 0
        for token_id in token_ids:
            piece = self._token_bytes(token_id)
            self._header = (self._header + piece)[:MAX_HEADER]
            self._num_undecided += 1
            self._is_analysis = self._is_analysis or b"<|channel|>analysis" in self._header
            if self._is_analysis:
                num_known += self._num_undecided
                self._num_undecided = 0
            if piece.endswith((b"<|end|>", b"<|call|>", b"<|return|>")):
                self._header, self._num_undecided, self._is_analysis = b"", 0, False
        return num_known
