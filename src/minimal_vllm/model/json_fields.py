"""Reading single values of a config.json: the right type and range, or an error that names them."""

from collections.abc import Mapping
from typing import Any


def integer(
    raw: Mapping[str, Any], key: str, default: int | None = None, *, at_least: int = 1
) -> int:
    """The integer under ``key``; without a default, it must be there."""
    value = raw.get(key, default)
    if type(value) is not int or value < at_least:
        raise _wrong(raw, key, f"an integer of at least {at_least}")
    return value


def positive(raw: Mapping[str, Any], key: str) -> float:
    """The positive number under ``key``, which must be there."""
    value = raw.get(key)
    if not isinstance(value, int | float) or not value > 0:
        raise _wrong(raw, key, "a positive number")
    return float(value)


def flag(raw: Mapping[str, Any], key: str, *, default: bool = False) -> bool:
    """The boolean under ``key``."""
    value = raw.get(key, default)
    if type(value) is not bool:
        raise _wrong(raw, key, "true or false")
    return value


def entries(raw: Mapping[str, Any], key: str, at_least: int) -> list[Any]:
    """The list under ``key``, which must be there and have so many entries or more."""
    value = raw.get(key)
    if not isinstance(value, list) or len(value) < at_least:
        raise _wrong(raw, key, f"a list with an entry for each of the {at_least} layers")
    return value


def _wrong(raw: Mapping[str, Any], key: str, wanted: str) -> ValueError:
    found = f"is {raw[key]!r}" if key in raw else "is missing"
    return ValueError(f"config.json: {key} {found}, but must be {wanted}")
