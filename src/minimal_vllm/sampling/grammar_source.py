"""Converting a request's structured output options to a grammar in llguidance's Lark syntax.

The syntax: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

import json
import re
from typing import Any

from minimal_vllm.sampling.json_schema import prepare_schema
from minimal_vllm.sampling_params import StructuredOutputsParams

MAX_WHITESPACE = 32
"""Maximum number of whitespace characters between two tokens of JSON. Without a limit, some models
never stop adding more."""

_HARMONY = """start: message* last
message: <|channel|> ("analysis" | "commentary") <|message|> /(?s:.)*/ <|end|> <|start|> "assistant"
last: """
_WITH_REASONING = {
    "harmony": _HARMONY + '<|channel|> "final" <|message|> answer',
    "harmony calls": _HARMONY + "answer",
    "begun": "start: reasoning answer\nreasoning[lazy]: /(?s:.)*<\\/think>/",
    "possible": "start: answer | reasoning answer\nreasoning[lazy]: /<think>(?s:.)*<\\/think>/",
}


def grammar_source(wanted: StructuredOutputsParams) -> str:
    """Return the grammar of the answer, without the reasoning before it.

    The grammar is in Lark's syntax, unless the user's own grammar is in EBNF.

    Raises:
        ValueError: the options can't be expressed as a grammar.
        TypeError: a schema has values that are not JSON types.
        RecursionError: a schema is nested too deeply.
    """
    from llguidance import regex_to_lark

    any_whitespace = not wanted.disable_any_whitespace
    if wanted.json is not None:
        close_all = wanted.disable_additional_properties
        return f"start: {json_rule(wanted.json, any_whitespace, close_all=close_all)}"
    if wanted.json_object:
        return f"start: {json_rule({'type': 'object'}, any_whitespace)}"
    if wanted.regex is not None:
        ascii_classes = "dw"  # as in the patterns of a JSON schema
        return f"start: /{regex_to_lark(wanted.regex, ascii_classes)}/"
    if wanted.choice is not None:
        # The lexer matches names in capitals; it can tell many thousands of choices apart.
        return "start: CHOICE\nCHOICE: " + " | ".join(map(json.dumps, wanted.choice))
    return wanted.grammar or ""


def json_rule(
    schema: str | dict[str, Any],
    any_whitespace: bool = True,
    *,
    close_all: bool = False,
    lenient: bool = False,
) -> str:
    """Return the part of a rule that matches JSON of this schema; ``$ref`` sees this schema only.

    Args:
        schema: the schema, or its JSON; see ``prepare_schema`` for what is made of it.
        any_whitespace: allow whitespace between two tokens of JSON.
        close_all: as in ``prepare_schema``.
        lenient: ignore keywords that can't be enforced, rather than to refuse the schema.

    Raises:
        ValueError, TypeError, RecursionError: as ``grammar_source``.
    """
    prepared = prepare_schema(schema, close_all=close_all)
    options: dict[str, Any] = (
        {"whitespace_pattern": f"[ \\n\\r\\t]{{1,{MAX_WHITESPACE}}}"}
        if any_whitespace
        else {"whitespace_flexible": False}
    )
    options["lenient"] = lenient
    return "%json " + json.dumps({"x-guidance": options} | prepared)


def nested_rule(source: str) -> str:
    """Return the part of a rule that matches what a whole grammar, in Lark's syntax, matches."""
    return f"%lark {{\n{source}\n}}"


def with_reasoning(source: str, reasoning: str | None) -> str:
    """Return a grammar, in Lark's syntax, with the reasoning that the request allows before it."""
    if reasoning is None:
        return source
    if reasoning == "harmony calls":
        source = re.sub(f'"{_TAG % r"([a-z]+)"}"', r"<|\1|>", source)
    return f"{_WITH_REASONING[reasoning]}\nanswer: {nested_rule(source)}"


_TAG = "\N{MATHEMATICAL LEFT WHITE SQUARE BRACKET}%s\N{MATHEMATICAL RIGHT WHITE SQUARE BRACKET}"
"""Text that stands for a special token, until a grammar has been checked, for which there are none.
"""


def tag(name: str) -> str:
    """Return what stands for the special token ``<|name|>`` in a grammar of harmony calls."""
    return f'"{_TAG % name}"'
