"""What an output must match, written as a grammar in llguidance's variant of Lark's syntax.

The syntax: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

import json
from typing import Any

from minimal_vllm.sampling_params import StructuredOutputsParams

MAX_WHITESPACE = 32
"""Characters between two tokens of JSON: without a bound, some models go on with it for ever."""

_WITH_REASONING = {
    "begun": "start: reasoning answer\nreasoning[lazy]: /(?s:.)*<\\/think>/",
    "possible": "start: answer | reasoning answer\nreasoning[lazy]: /<think>(?s:.)*<\\/think>/",
}


def grammar_source(wanted: StructuredOutputsParams) -> str:
    """The grammar of what is wanted, without the reasoning before it; in EBNF if the user's is.

    Raises:
        ValueError: what is wanted can't be written as a grammar.
        TypeError: a schema is not made of JSON's types.
        RecursionError: it is nested too deep.
    """
    from llguidance import regex_to_lark

    any_whitespace = not wanted.disable_any_whitespace
    if wanted.json is not None:
        return f"start: {json_rule(wanted.json, any_whitespace)}"
    if wanted.json_object:
        return f"start: {json_rule({'type': 'object'}, any_whitespace)}"
    if wanted.regex is not None:
        ascii_classes = "dw"  # as in the patterns of a JSON schema
        return f"start: /{regex_to_lark(wanted.regex, ascii_classes)}/"
    if wanted.choice is not None:
        # A name in capitals is matched by the lexer, which can tell many thousands apart.
        return "start: CHOICE\nCHOICE: " + " | ".join(map(json.dumps, wanted.choice))
    return wanted.grammar or ""


def json_rule(schema: str | dict[str, Any], any_whitespace: bool = True) -> str:
    """The part of a rule that matches JSON by this schema; ``$ref`` sees this schema only.

    Raises:
        ValueError, TypeError, RecursionError: as ``grammar_source``.
    """
    parsed = json.loads(schema) if isinstance(schema, str) else schema
    if not isinstance(parsed, dict):
        raise ValueError(f"a JSON schema is an object, not {parsed!r}")
    whitespace = (
        {"whitespace_pattern": f"[ \\n\\r\\t]{{1,{MAX_WHITESPACE}}}"}
        if any_whitespace
        else {"whitespace_flexible": False}
    )
    return "%json " + json.dumps({"x-guidance": whitespace} | parsed, allow_nan=False)


def with_reasoning(source: str, reasoning: str | None) -> str:
    """A grammar, in Lark's syntax, with the reasoning that ``StructuredOutputsParams`` allows."""
    if reasoning is None:
        return source
    return f"{_WITH_REASONING[reasoning]}\nanswer: %lark {{\n{source}\n}}"
