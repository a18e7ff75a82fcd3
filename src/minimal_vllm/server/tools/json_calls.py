"""Formats in which the text consists of calls only: JSON objects with ``parameters``."""

import re
from collections.abc import Sequence

from minimal_vllm.sampling.grammar_source import nested_rule
from minimal_vllm.sampling_params import StructuredOutputsParams
from minimal_vllm.server.message import CallWriter, MessageDelta, Reader
from minimal_vllm.server.tools.call_object import CallObject
from minimal_vllm.server.tools.declaration import Function
from minimal_vllm.server.tools.format import ToolFormat, call_rules, loose

PYTHON_TAG = "<|python_tag|>"

LLAMA_GRAMMAR = r"""start: text | call (/; ?/ call)*
text: /([^{\s;,](?s:.)*)?/
"""
"""Calls, or a text that is not read as one."""

LLAMA_OR_ANSWER = """start: answer | call (/; ?/ call)*
answer: """
"""Calls, or an answer of another form."""

ARRAY_GRAMMAR = """start: "[" call (", " call)* "]"
"""


class Llama3Json(ToolFormat):
    """Format ``{"name": …, "parameters": {…}}``; several calls are separated by semicolons.

    Source: https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1/
    """

    def __init__(self, functions: Sequence[Function]) -> None:
        self._functions = functions

    def constraint(self, answer: str | None = None) -> StructuredOutputsParams | None:
        """Return a grammar if a function is strict, or an answer without calls has a form."""
        if answer is None and not any(function.strict for function in self._functions):
            return None
        rules = call_rules([loose(function) for function in self._functions], "parameters")
        start = LLAMA_GRAMMAR if answer is None else LLAMA_OR_ANSWER + nested_rule(answer) + "\n"
        return StructuredOutputsParams(grammar=start + rules)

    def make_reader(self, calls: CallWriter) -> Reader:
        """Return a reader that finds calls only at the very beginning of the text."""
        around = re.compile(rf"[\s;,]*(?:{re.escape(PYTHON_TAG)}[\s;,]*)?")
        return JsonCallsReader(calls, around, PYTHON_TAG)


class RequiredCalls(ToolFormat):
    """Format ``[{"name": …, "parameters": {…}}, …]``: calls that the model must make.

    It is vLLM's format for required calls, whatever the model's own format is.
    """

    def __init__(self, functions: Sequence[Function], parallel: bool) -> None:
        self._functions = functions
        self._parallel = parallel

    def constraint(self, answer: str | None = None) -> StructuredOutputsParams:  # noqa: ARG002
        """Return the grammar of at least one call; of one, if they are not to be parallel."""
        start = ARRAY_GRAMMAR if self._parallel else 'start: "[" call "]"\n'
        return StructuredOutputsParams(grammar=start + call_rules(self._functions, "parameters"))

    def make_reader(self, calls: CallWriter) -> Reader:
        """Return a reader of the array's elements."""
        return JsonCallsReader(calls, re.compile(r"[\s\[,\]]*"))


class JsonCallsReader(Reader):
    """Reader that finds consecutive calls; from the first other text on, all is content.

    Args:
        calls: writes the calls.
        around: pattern of the text before, between and after calls; it also matches no text.
        tag: part of that text which may arrive in pieces.
    """

    def __init__(self, calls: CallWriter, around: re.Pattern[str], tag: str = "") -> None:
        self._calls = calls
        self._around = around
        self._tag = tag
        self._skipped = ""
        """Text before the next call; it is content if there is no call."""
        self._held = ""
        self._call: CallObject | None = None
        self._is_content = False

    def read(self, text: str, part: MessageDelta) -> None:
        """Read the next piece of text, and add its content to ``part``."""
        while text:
            if self._is_content:
                part.add_text("content", text)
                return
            if self._call is not None:
                text = self._read_call(self._call, text, part)
            else:
                text = self._find_call(text)

    def finish(self, part: MessageDelta) -> None:
        """Add the text that was held back to ``part``."""
        if self._call is None:
            part.add_text("content", self._take_skipped() + self._held)
        elif self._call.state is CallObject.State.HEAD:
            part.add_text("content", self._skipped + self._call.text)

    def _find_call(self, text: str) -> str:
        """Return the text after what is skipped, or nothing while that may be incomplete."""
        text = self._skipped + self._held + text
        found = self._around.match(text)
        self._skipped = found[0] if found else ""
        rest = text.removeprefix(self._skipped)
        self._held = rest if self._tag.startswith(rest) else ""
        if self._held == rest:  # both may be empty
            return ""
        if rest.startswith("{"):
            self._call = CallObject(self._calls)
            return rest
        self._is_content = True
        return self._take_skipped() + rest

    def _read_call(self, call: CallObject, text: str, part: MessageDelta) -> str:
        text = call.read(text, part)
        if call.state is CallObject.State.NO_CALL:
            part.add_text("content", self._skipped + call.text)
            self._is_content = True
        if call.state in (CallObject.State.CALL, CallObject.State.NO_CALL):
            self._call = None
            self._skipped = ""
        return text

    def _take_skipped(self) -> str:
        """Return the skipped text if it turns out to be content."""
        skipped = "" if self._calls.has_begun else self._skipped
        self._skipped = ""
        return skipped
