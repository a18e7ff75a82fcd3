"""Base of the formats of tool calls."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence

from minimal_vllm.sampling_params import StructuredOutputsParams
from minimal_vllm.server.message import CallWriter, Reader
from minimal_vllm.server.tools.declaration import Function


class ToolFormat(ABC):
    """Format in which calls are written in the model's text."""

    @abstractmethod
    def constraint(self, answer: str | None = None) -> StructuredOutputsParams | None:
        """Return what the text must match; None: the model writes what it likes.

        Args:
            answer: grammar, in Lark's syntax, of a text that has no calls; None: any text.
        """

    @abstractmethod
    def make_reader(self, calls: CallWriter) -> Reader:
        """Return a reader that finds the calls in the text of one message."""


def call_rules(functions: Sequence[Function], arguments: str) -> str:
    """Return rules of a grammar in which ``call`` matches an object that calls a function.

    Args:
        functions: functions that may be called, at least one.
        arguments: key of the arguments in that object.
    """
    calls = " | ".join(f"call_{index}" for index in range(len(functions)))
    rules = [f"call: {calls}"]
    for index, function in enumerate(functions):
        head = f'{{"name": {json.dumps(function.name, ensure_ascii=False)}, "{arguments}": '
        rules += [
            f'call_{index}: {json.dumps(head)} arguments_{index} "}}"',
            f"arguments_{index}: {function.arguments_rule}",
        ]
    return "\n".join(rules)


def loose(function: Function) -> Function:
    """Return the function; if it isn't strict, with any object as arguments."""
    return function if function.strict else Function(name=function.name, parameters={})
