"""Unions of JSON objects that are distinguished by their field ``type``."""

import reprlib
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Discriminator, model_validator

from minimal_vllm.server.api_model import HistoryModel, field_error

UNSUPPORTED = "[unsupported]"
"""Tag of ``UnsupportedKind`` in a union."""


class UnsupportedKind(HistoryModel):
    """Object of a kind that the API has but this server doesn't; it is refused by its type."""

    noun: ClassVar[str]
    """Such objects, in the plural."""
    supported: ClassVar[str]
    """The kinds that the server has."""
    hints: ClassVar[Mapping[str, str]] = {}
    """Advice about single kinds, in place of the list of the supported ones."""

    type: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, data: Any) -> Any:
        kind = type_of(data)
        hint = cls.hints.get(str(kind), f"use {cls.supported}")
        raise field_error(
            "type", f"{cls.noun} of the type {reprlib.repr(kind)} are not supported here: {hint}"
        )


def type_of(value: Any) -> Any:
    """Return the field ``type`` of a JSON object or of a model; None if it has none."""
    return value.get("type") if isinstance(value, dict) else getattr(value, "type", None)


def by_type(tags: Mapping[str, str], default: str) -> Discriminator:
    """Return the discriminator of a union whose members are distinguished by their type.

    Args:
        tags: tag of the member for each supported type.
        default: tag of the member for objects without a type, and for what isn't an object.
    """

    def choose(value: Any) -> str:
        kind = type_of(value)
        return default if kind is None else tags.get(str(kind), UNSUPPORTED)

    return Discriminator(choose)
