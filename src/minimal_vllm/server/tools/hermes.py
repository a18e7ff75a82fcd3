"""The format of the Hermes and Qwen models: text in which ``<tool_call>`` tags enclose calls.

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
"""Any text, but once a tag is opened, it has a call in it."""


CALLS_OR_ANSWER = r"""start: answer | tagged+
tagged: "<tool_call>" /\n?/ call /\n?/ "</tool_call>" /\n?/
answer: """
"""Calls and no other text, or an answer of another form."""


class Hermes(ToolFormat):
    """``<tool_call>{"name": …, "arguments": {…}}</tool_call>``, anywhere, any number of times."""

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
        """Takes whitespace around calls for a part of them."""
        return HermesReader(calls)


class HermesReader(Reader):
    """Takes out the calls, and leaves the rest as content."""

    def __init__(self, calls: CallWriter) -> None:
        self._calls = calls
        self._held = ""
        self._opening = ""
        self._call: CallObject | None = None
        self._is_behind_call = False

    def read(self, text: str, part: MessageDelta) -> None:
        """Put what the next piece of text says into ``part``."""
        text, self._held = self._held + text, ""
        while text:
            if self._call is not None:
                text = self._read_call(self._call, text, part)
            elif self._is_behind_call:
                text = self._skip_closing(text)
            else:
                text = self._read_content(text, part)

    def finish(self, part: MessageDelta) -> None:
        """Put what was held back into ``part``."""
        if self._call is not None and self._call.state is CallObject.State.HEAD:
            part.content += self._opening + self._call.text
        elif not self._is_behind_call:
            part.content += self._held

    def _read_content(self, text: str, part: MessageDelta) -> str:
        """Up to the next call; what may be its beginning is held back."""
        found = BEGIN.search(text)
        if found is None:
            certain = _certain_content(text)
            part.content += text[:certain]
            self._held = text[certain:]
            return ""
        content = text[: found.start()].rstrip()
        part.content += content
        self._opening = text[len(content) : found.end()]
        self._call = CallObject(self._calls)
        return text[found.end() :]

    def _read_call(self, call: CallObject, text: str, part: MessageDelta) -> str:
        text = call.read(text, part)
        if call.state is CallObject.State.NO_CALL:
            part.content += self._opening + call.text
            self._call = None
        elif call.state is CallObject.State.CALL:
            self._call = None
            self._is_behind_call = True
        return text

    def _skip_closing(self, text: str) -> str:
        """Behind a call: without whitespace, and without the closing tag, which may be missing."""
        rest = text.lstrip()
        if rest.startswith(CLOSE):
            return rest.removeprefix(CLOSE)
        if CLOSE.startswith(rest):
            self._held = rest
            return ""
        self._is_behind_call = False
        return rest


def _certain_content(text: str) -> int:
    """How many characters can't be a part of a call's beginning, or of the whitespace before it."""
    body = text.rstrip()
    start = len(body) - len(OPEN) if body.endswith(OPEN) else len(text) - overlap(text, OPEN)
    return len(text[:start].rstrip())
