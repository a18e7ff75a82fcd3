"""Reading single values of a config.json, with errors that name the key and what it must be."""

from collections.abc import Mapping
from math import isfinite
from typing import Any, TypeGuard


def integer(
    raw: Mapping[str, Any], key: str, default: int | None = None, *, at_least: int = 1
) -> int:
    """Return the integer under ``key``.

    Raises:
        ValueError: the value is not an integer of at least ``at_least``, or is missing and has no
            default.
    """
    value = raw.get(key, default)
    if type(value) is not int or value < at_least:
        raise _wrong(raw, key, f"an integer of at least {at_least}")
    return value


def positive(raw: Mapping[str, Any], key: str) -> float:
    """Return the number under ``key``.

    Raises:
        ValueError: the number is missing, infinite or not positive.
    """
    value = raw.get(key)
    if not is_number(value) or not value > 0:
        raise _wrong(raw, key, "a positive number")
    return float(value)


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a JSON value is a finite number; ``true`` and ``false`` are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def flag(raw: Mapping[str, Any], key: str, *, default: bool = False) -> bool:
    """Return the boolean under ``key``, or the default.

    Raises:
        ValueError: the value is not a boolean.
    """
    value = raw.get(key, default)
    if type(value) is not bool:
        raise _wrong(raw, key, "true or false")
    return value


def entries(raw: Mapping[str, Any], key: str, at_least: int) -> list[Any]:
    """Return the list under ``key``, which has an entry for each layer.

    Raises:
        ValueError: the list is missing, or has fewer than ``at_least`` entries.
    """
    value = raw.get(key)
    if not isinstance(value, list) or len(value) < at_least:
        raise _wrong(raw, key, f"a list with an entry for each of the {at_least} layers")
    return value


def mapping(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the object under ``key``, or an empty one if it is missing or null.

    Raises:
        ValueError: the value is not an object.
    """
    value = raw.get(key) or {}
    if not isinstance(value, Mapping):
        raise _wrong(raw, key, "an object")
    return value


def values(raw: Mapping[str, Any], key: str) -> list[Any]:
    """Return the list under ``key``, or an empty one if it is missing or null.

    Raises:
        ValueError: the value is not a list.
    """
    value = raw.get(key) or []
    if not isinstance(value, list):
        raise _wrong(raw, key, "a list")
    return value


def objects(raw: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """Return the list of objects under ``key``, or an empty one if it is missing or null.

    Raises:
        ValueError: the value is not a list of objects.
    """
    listed = values(raw, key)
    if not all(isinstance(entry, Mapping) for entry in listed):
        raise _wrong(raw, key, "a list of objects")
    return listed


def names(raw: Mapping[str, Any], key: str) -> list[str]:
    """Return the list of names under ``key``, or an empty one if it is missing or null.

    Raises:
        ValueError: the value is not a list of names.
    """
    listed = values(raw, key)
    if not all(isinstance(name, str) for name in listed):
        raise _wrong(raw, key, "a list of names")
    return listed


def token_ids(value: object) -> tuple[int, ...]:
    """Return the token ids in a JSON value: one id, a list of ids, or None for no ids.

    Raises:
        ValueError: the value is anything else.
    """
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
        raise ValueError(f"eos_token_id must be a token id, a list of them or null, not {value!r}")
    return tuple(ids)


def _wrong(raw: Mapping[str, Any], key: str, wanted: str) -> ValueError:
    found = f"is {raw[key]!r}" if key in raw else "is missing"
    return ValueError(f"config.json: {key} {found}, but must be {wanted}")
