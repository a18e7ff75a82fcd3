"""Dataclasses of a user's settings, validated on creation, with errors of one sentence.

A dataclass of settings is declared as

    @clear_errors
    @dataclass(config=SETTINGS)
    class Settings: ...
"""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import wraps
from typing import Any, TypeVar

from pydantic import ConfigDict, ValidationError
from pydantic_core import ErrorDetails

SETTINGS = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
"""Pydantic's configuration of these dataclasses. Field docstrings become ``--help`` texts."""

T = TypeVar("T")


class SettingsError(ValueError):
    """Error for a field with an invalid value, or for two fields that contradict each other.

    The message has one sentence for each invalid field, such as ``top_p: should be less than or
    equal to 1, not 2.0``.
    """

    def __init__(self, error: ValidationError, names: Iterable[str] = ()) -> None:
        super().__init__(describe(error, names))
        self._error = error

    def errors(self) -> list[ErrorDetails]:
        """Return pydantic's details, one entry for each wrong field."""
        return self._error.errors()


def describe(error: ValidationError, names: Iterable[str] = ()) -> str:
    """Return one line with all complaints of a validation error.

    Args:
        error: pydantic's error.
        names: existing fields, one of which is suggested for a misspelled name.
    """
    return "; ".join(_describe(details, names) for details in error.errors())


def _describe(details: ErrorDetails, names: Iterable[str]) -> str:
    name = ".".join(map(str, details["loc"]))
    complaint = details["msg"].removeprefix("Value error, ")
    if details["type"] == "unexpected_keyword_argument":
        similar = get_close_matches(name, names, 1)
        hint = f"; did you mean {similar[0]}?" if similar else ""
        return f"{name} is not a known argument{hint}"
    if complaint.startswith("Input should "):
        complaint = f"{complaint.removeprefix('Input ')}, not {details['input']!r}"
    return f"{name}: {complaint}" if name else complaint


def clear_errors(settings: type[T]) -> type[T]:
    """Decorate a pydantic dataclass so that it raises ``SettingsError`` for a wrong value.

    Pydantic's own error is a ``ValueError`` too, but its text is several lines and a link.
    """
    names = tuple(getattr(settings, "__pydantic_fields__"))  # noqa: B009 - unknown to mypy

    def told_clearly(method: Callable[..., None]) -> Callable[..., None]:
        @wraps(method)
        def checked(*args: Any, **kwargs: Any) -> None:
            try:
                method(*args, **kwargs)
            except ValidationError as error:
                raise SettingsError(error, names) from None

        return checked

    setattr(settings, "__init__", told_clearly(settings.__init__))  # noqa: B010
    setattr(settings, "__setattr__", told_clearly(settings.__setattr__))  # noqa: B010
    return settings
