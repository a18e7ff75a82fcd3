"""Accepting arguments at values that change nothing, and refusing them at others."""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import wraps
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

T = TypeVar("T")


class _Anything(Container[object]):
    """Container that contains every value."""

    def __contains__(self, value: object) -> bool:
        return True


ANYTHING = _Anything()
"""Values of an argument that changes nothing, because the feature that it configures is absent."""

ON_OR_OFF = (False, True)
"""Values of a flag that changes nothing."""

OFF = (False,)


@dataclass(frozen=True)
class Unsupported:
    """Arguments of one feature that is not supported.

    Attributes:
        instead: what is supported, as the end of an error's sentence.
        neutral: the values of each argument that change nothing. None and empty containers change
            nothing for any argument. For an argument that is an object, they are a mapping with the
            neutral values of each key.
    """

    instead: str
    neutral: Mapping[str, Container[object]] = field(default_factory=dict)

    def check(self, name: str, value: object) -> None:
        """Raise a ValueError if ``value`` would change something."""
        if _is_neutral(value, self.neutral[name]):
            return
        raise ValueError(f"{name}={value!r} is not supported: {self.instead}")


def takes_no_value(neutral: Container[object]) -> bool:
    """Return whether an argument with these neutral values is a flag on the command line."""
    return isinstance(neutral, tuple) and {type(each) for each in neutral} == {bool}


def _is_neutral(value: object, neutral: Container[object]) -> bool:
    is_empty = isinstance(value, dict | list | set | tuple | str) and not any(value)
    if value is None or is_empty:
        return True
    if isinstance(neutral, Mapping) and isinstance(value, Mapping):
        return all(
            key in neutral and _is_neutral(each, neutral[key]) for key, each in value.items()
        )
    return _is_among(value, neutral)


def _is_among(value: object, values: Container[object]) -> bool:
    try:
        return value in values
    except Exception:  # an array, say, which can't be compared
        return False


def by_name(*groups: Unsupported) -> dict[str, Unsupported]:
    """Return the group of each argument."""
    return {name: group for group in groups for name in group.neutral}


def drop_neutral(
    given: Mapping[str, Any], unsupported: Mapping[str, Unsupported]
) -> dict[str, Any]:
    """Return the arguments that are left once the unsupported ones are dropped.

    Raises:
        ValueError: an unsupported argument has a value that would change something.
    """
    for name in given.keys() & unsupported.keys():
        unsupported[name].check(name, given[name])
    return {name: value for name, value in given.items() if name not in unsupported}


def check_unsupported(
    function: str, given: Mapping[str, Any], unsupported: Mapping[str, Unsupported]
) -> None:
    """Check that a function's further arguments change nothing.

    Raises:
        ValueError: one would change something.
        TypeError: one is not an argument of vLLM's either.
    """
    unknown = drop_neutral(given, unsupported)
    if unknown:
        raise TypeError(f"{function}() got an unexpected keyword argument {min(unknown)!r}")


def accepts(
    unsupported: Mapping[str, Unsupported], *, none_is_default: bool = False
) -> Callable[[type[T]], type[T]]:
    """Decorate a dataclass so that it can be made with vLLM's arguments too.

    Args:
        unsupported: vLLM's arguments that are not fields.
        none_is_default: let None stand for the default of fields that can't be None.
    """

    def decorate(settings: type[T]) -> type[T]:
        assert is_dataclass(settings)  # noqa: S101 - the decorator below this one makes it so
        make = settings.__init__
        never_none = _fields_without_none(settings) if none_is_default else frozenset()

        @wraps(make)
        def make_with(self: T, *args: Any, **kwargs: Any) -> None:
            # A server makes one of these for each request, nearly always of fields alone.
            if not kwargs.keys().isdisjoint(unsupported):
                kwargs = drop_neutral(kwargs, unsupported)
            for name in never_none:
                if name in kwargs and kwargs[name] is None:
                    del kwargs[name]
            make(self, *args, **kwargs)

        setattr(settings, "__init__", make_with)  # noqa: B010 - mypy knows of no such assignment
        return settings

    return decorate


def _fields_without_none(settings: Any) -> frozenset[str]:
    hints = get_type_hints(settings)
    return frozenset(
        each.name for each in fields(settings) if NoneType not in get_args(hints[each.name])
    )
