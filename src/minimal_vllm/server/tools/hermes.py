"""Format of the Hermes and Qwen models: text with calls in ``<tool_call>`` tags.

Source: https://github.com/NousResearch/Hermes-Function-Calling
"""

import re
from collections.abc import Sequence

from minimal_vllm.sampling.grammar_source import nested_rule
from minimal_vllm.sampling_params import StructuredOutputsParams
from minimal_vllm.server.message import CallWriter, MessageDelta, Reader, overlap
from minimal_vllm.server.tools.call_object import CallObject
from minimal_vllm.server.tools.declaration import Function
from minimal_vllm.server.tools.format import ToolFormat, call_rules, loose

OPEN, CLOSE = "<tool_call>", "</tool_call>"
BEGIN = re.compile(rf"{OPEN}\s*(?=\{{)")

GRAMMAR = r"""start: tagged* text
text: /(?s:.)*/
open[lazy]: /(?s:.)*<tool_call>/
tagged: open /\n?/ call /\n?/ "</tool_call>"
"""
"""Any text, in which an opened tag contains a call."""


CALLS_OR_ANSWER = r"""start: answer | tagged+
tagged: "<tool_call>" /\n?/ call /\n?/ "</tool_call>" /\n?/
answer: """
"""Calls and no other text, or an answer of another form."""


class Hermes(ToolFormat):
    """Format ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``, anywhere and repeatedly."""

    def __init__(self, functions: Sequence[Function]) -> None:
        self._functions = functions

    def constraint(self, answer: str | None = None) -> StructuredOutputsParams | None:
        """Return a grammar if a function is strict, or an answer without calls has a form."""
        if answer is None and not any(function.strict for function in self._functions):
            return None
        rules = call_rules([loose(function) for function in self._functions], "arguments")
        start = GRAMMAR if answer is None else CALLS_OR_ANSWER + nested_rule(answer) + "\n"
        return StructuredOutputsParams(grammar=start + rules)

    def make_reader(self, calls: CallWriter) -> Reader:
        """Return a reader that drops the whitespace around calls."""
        return HermesReader(calls)


class HermesReader(Reader):
    """Reader that splits off the calls, and takes the rest as content."""

    def __init__(self, calls: CallWriter) -> None:
        self._calls = calls
        self._held = ""
        self._opening = ""
        self._call: CallObject | None = None
        self._is_behind_call = False

    def read(self, text: str, part: MessageDelta) -> None:
        """Read the next piece of text, and add its content to ``part``."""
        text, self._held = self._held + text, ""
        while text:
            if self._call is not None:
                text = self._read_call(self._call, text, part)
            elif self._is_behind_call:
                text = self._skip_closing(text)
            else:
                text = self._read_content(text, part)

    def finish(self, part: MessageDelta) -> None:
        """Add the text that was held back to ``part``."""
        if self._call is not None and self._call.state is CallObject.State.HEAD:
            part.add_text("content", self._opening + self._call.text)
        elif not self._is_behind_call:
            part.add_text("content", self._held)

    def _read_content(self, text: str, part: MessageDelta) -> str:
        """Read content up to the next call; hold back what may be the beginning of a call."""
        found = BEGIN.search(text)
        if found is None:
            certain = _certain_content(text)
            part.add_text("content", text[:certain])
            self._held = text[certain:]
            return ""
        content = text[: found.start()].rstrip()
        part.add_text("content", content)
        self._opening = text[len(content) : found.end()]
        self._call = CallObject(self._calls)
        return text[found.end() :]

    def _read_call(self, call: CallObject, text: str, part: MessageDelta) -> str:
        text = call.read(text, part)
        if call.state is CallObject.State.NO_CALL:
            part.add_text("content", self._opening + call.text)
            self._call = None
        elif call.state is CallObject.State.CALL:
            self._call = None
            self._is_behind_call = True
        return text

    def _skip_closing(self, text: str) -> str:
        """Skip whitespace and the closing tag, which may be missing, after a call."""
        rest = text.lstrip()
        if rest.startswith(CLOSE):
            return rest.removeprefix(CLOSE)
        if CLOSE.startswith(rest):
            self._held = rest
            return ""
        self._is_behind_call = False
        return rest


def _certain_content(text: str) -> int:
    """Return the number of characters that can't belong to a call or the whitespace before it."""
    body = text.rstrip()
    start = len(body) - len(OPEN) if body.endswith(OPEN) else len(text) - overlap(text, OPEN)
    return len(text[:start].rstrip())
