"""JSON schemas as a grammar can hold an output to them.

A schema describes which JSON is valid. To generate JSON, two things are decided here that it may
leave open: which annotations are ignored, and whether an object may have keys of its own.
"""

import json
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

ENFORCED_FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
)
"""Formats that llguidance holds a string to."""

_ONE = frozenset(
    {
        "items",
        "additionalItems",
        "additionalProperties",
        "unevaluatedItems",
        "unevaluatedProperties",
        "contains",
        "propertyNames",
        "not",
        "if",
        "then",
        "else",
    }
)
_LIST = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_MAP = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
"""Keywords whose values are schemas: one, a list of them, or an object of them."""

_IN_PLACE = ("allOf", "anyOf", "oneOf", "$ref", "if", "dependentSchemas")
"""Keywords by which another schema applies to the same value."""


def prepare_schema(schema: str | Schema, *, close_all: bool = False) -> Schema:
    """Return a copy of a schema that can be compiled to a grammar.

    By JSON Schema, an unknown ``format`` is an annotation, so it is left out; and so is
    ``x-guidance``, with which a schema could lift its own constraints. An object that names its
    properties, and doesn't say whether it may have others, gets ``additionalProperties: false``: a
    small model may otherwise go on adding keys. The output is valid by the original schema.

    Args:
        schema: the schema, or its JSON.
        close_all: close such objects even where several schemas apply to the same value, which may
            make it impossible to satisfy them.

    Raises:
        ValueError, TypeError, RecursionError: it isn't a JSON object.
    """
    parsed = json.loads(schema) if isinstance(schema, str) else schema
    if not isinstance(parsed, dict):
        raise ValueError(f"a JSON schema is an object, not {parsed!r}")
    copy: Schema = json.loads(json.dumps(parsed, allow_nan=False))
    copy.pop("x-guidance", None)
    nodes = [node for _, node in subschemas(copy)]
    for node in nodes:
        name = node.get("format")
        if isinstance(name, str) and name not in ENFORCED_FORMATS:
            del node["format"]
    if close_all or not any(map(_is_combined, nodes)):
        for node in nodes:
            if close_all or _can_be_closed(node):
                _close(node)
    return copy


def subschemas(
    schema: Schema, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Schema]]:
    """Yield a schema and all that it holds, each with the keys that lead to it."""
    yield path, schema
    for keyword, value in schema.items():
        children: dict[str, Any] = {}
        if keyword in _ONE:
            children[keyword] = value
        if keyword in _LIST and isinstance(value, list):
            children |= {f"{keyword}.{index}": each for index, each in enumerate(value)}
        if keyword in _MAP and isinstance(value, dict):
            children |= {f"{keyword}.{name}": each for name, each in value.items()}
        for name, child in children.items():
            if isinstance(child, dict):
                yield from subschemas(child, (*path, name))


def find_keyword(schema: Schema, keyword: str) -> str | None:
    """Return the path of the first schema that has a keyword, with dots; None if there is none."""
    found = (path for path, node in subschemas(schema) if keyword in node)
    return next((".".join(path) for path in found), None)


def _is_combined(node: Schema) -> bool:
    """Return whether several schemas apply to one value, each of which sees all of its keys."""
    has_several = isinstance(node.get("allOf"), list) and len(node["allOf"]) > 1
    names_keys = "properties" in node or "patternProperties" in node
    return has_several or (names_keys and any(keyword in node for keyword in _IN_PLACE))


def _can_be_closed(node: Schema) -> bool:
    """Return whether the properties that an object names suffice for what it requires."""
    named, required = node.get("properties"), node.get("required", [])
    fewest = node.get("minProperties", 0)
    if not isinstance(named, dict) or not isinstance(required, list):
        return False
    if not isinstance(fewest, int | float):
        return False
    return set(map(str, required)) <= named.keys() and fewest <= len(named)


def _close(node: Schema) -> None:
    names_keys = "properties" in node or "patternProperties" in node
    if names_keys and "additionalProperties" not in node and "unevaluatedProperties" not in node:
        node["additionalProperties"] = False
