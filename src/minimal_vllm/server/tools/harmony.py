"""Format of gpt-oss' calls: messages to ``functions.…``, whose text is the arguments."""

import json
from collections.abc import Sequence

from minimal_vllm.sampling.grammar_source import nested_rule, tag
from minimal_vllm.sampling_params import StructuredOutputsParams
from minimal_vllm.server.harmony import HarmonyReader
from minimal_vllm.server.message import CallWriter, ContentReader, Reader
from minimal_vllm.server.tools.declaration import Function
from minimal_vllm.server.tools.format import ToolFormat, loose


class Harmony(ToolFormat):
    """Format ``<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}``."""

    def __init__(self, functions: Sequence[Function]) -> None:
        self._functions = functions

    def constraint(self, answer: str | None = None) -> StructuredOutputsParams | None:
        """Return a grammar if a function is strict, or an answer without calls has a form.

        It matches the last message of a turn, its header included.
        """
        if answer is None and not any(function.strict for function in self._functions):
            return None
        text = "/(?s:.)*/" if answer is None else nested_rule(answer)
        calls = " | ".join(f"call_{index}" for index in range(len(self._functions)))
        rules = [
            f"start: final | {calls}",
            f'final: {tag("channel")} "final" {tag("message")} text',
            f"text: {text}",
            f'json: (" " {tag("constrain")}? "json")?',
        ]
        for index, function in enumerate(map(loose, self._functions)):
            recipient = f"to=functions.{function.name}"
            after = f"{tag('channel')} {json.dumps(f'commentary {recipient}', ensure_ascii=False)}"
            before = f"{json.dumps(f' {recipient}', ensure_ascii=False)} {tag('channel')}"
            header = f'({after} | {before} "commentary") json {tag("message")}'
            rules += [
                f"call_{index}: {header} arguments_{index}",
                f"arguments_{index}: {function.arguments_rule}",
            ]
        return StructuredOutputsParams(grammar="\n".join(rules) + "\n")

    def make_reader(self, calls: CallWriter) -> Reader:
        """Return a reader of a whole turn, which splits off the reasoning, too."""
        return HarmonyReader(calls, ContentReader())
