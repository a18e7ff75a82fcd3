"""Command line options made from the fields of dataclasses, so that each is declared once.

The name, type, default and docstring of a field become those of its option. Its value is checked by
the dataclass.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource
from pydantic import BeforeValidator

from minimal_vllm.config import EngineConfig
from minimal_vllm.sampling_params import SamplingParams

MULTIPLIERS = {
    **{suffix: 1000**power for power, suffix in enumerate("kmgt", 1)},
    **{suffix: 1024**power for power, suffix in enumerate("KMGT", 1)},
}
"""Suffixes of numbers, as vLLM has them: 2k is 2,000, and 2K is 2,048."""


class FieldOption(click.Option):
    """The option of one field of the dataclass ``owner``."""

    def __init__(
        self,
        owner: type,
        field_name: str,
        name: str,
        hint: Any,
        default: Any,
        doc: str,
        heading: str,
    ) -> None:
        required = default is MISSING
        kind = _type_of(hint, default)
        super().__init__(
            [f"--{name}/--no-{name}" if "is_flag" in kind else f"--{name}", field_name],
            default=None if required else default,
            show_default="the small built-in one" if required else default is not False,
            help=f"{doc} Can be repeated." if "multiple" in kind else doc,
            **kind,
        )
        self.owner = owner
        self.heading = heading

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """Convert what was typed; a JSON list stands for its elements."""
        converted = super().type_cast_value(ctx, value)
        if not self.multiple or converted is None:
            return converted
        lists = [each if isinstance(each, list) else [each] for each in converted]
        return tuple(element for each in lists for element in each)


class SectionedCommand(click.Command):
    """A command whose ``--help`` lists the options of each dataclass under a heading."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, then those of each dataclass."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            row = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if row:
                heading = param.heading if isinstance(param, FieldOption) else "Options"
                sections.setdefault(heading, []).append(row)
        for heading, rows in sections.items():
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


HEADINGS: dict[type, str] = {
    EngineConfig: "Engine",
    SamplingParams: "Sampling (the model's generation_config.json overrides the defaults shown)",
}
"""Headings of the dataclasses that several commands take options from."""


def field_options(
    owner: type,
    *,
    without: Collection[str] = (),
    defaults: Mapping[str, Any] = {},
    named: Mapping[str, str] = {},
    heading: str | None = None,
) -> Callable[[click.Command], click.Command]:
    """Decorate a command with an option for each field of a dataclass.

    Args:
        owner: a pydantic dataclass with docstrings under its fields, made with ``SETTINGS``.
        without: fields that get no option.
        defaults: the command's defaults, where they differ from the dataclass's.
        named: names of options that differ from their fields' names.
        heading: title of the options' section in ``--help``. Default: the one in ``HEADINGS``.
    """
    hints = get_type_hints(owner, include_extras=True)
    docs: Mapping[str, Any] = getattr(owner, "__pydantic_fields__")  # noqa: B009 - not in its type
    section = heading or HEADINGS.get(owner, "Options")

    def decorate(command: click.Command) -> click.Command:
        for field in fields(owner):
            if field.name not in without:
                hint, doc = hints[field.name], docs[field.name].description.replace("``", "")
                default = defaults.get(field.name, field.default)
                name = named.get(field.name, field.name.replace("_", "-"))
                command.params.append(
                    FieldOption(owner, field.name, name, hint, default, doc, section)
                )
        return command

    return decorate


def given_options(ctx: click.Context, owner: type) -> dict[str, Any]:
    """Return the fields of ``owner`` that were set on the command line."""
    names = [
        param.name
        for param in ctx.command.params
        if isinstance(param, FieldOption) and param.owner is owner and param.name
    ]
    return {
        name: ctx.params[name]
        for name in names
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }


def _type_of(hint: Any, default: Any) -> dict[str, Any]:
    """Return the arguments of ``click.Option`` that make it take values of this type."""
    alternatives = list(_alternatives(hint))
    kind = [each for each in alternatives if each is not NoneType][-1]  # str | list[str]: the list
    if kind is bool:
        return {"is_flag": True}
    if get_origin(kind) is Literal:
        names = get_args(kind)
        if _is_converted(hint):  # it has other names too, which the dataclass knows
            return {"type": str, "metavar": f"[{'|'.join(names)}]"}
        return {"type": click.Choice(names)}
    if get_origin(kind) is list:
        return {"type": _element_or_list(get_args(kind)[0]), "multiple": True}
    if get_origin(kind) is dict or is_dataclass(kind):
        is_optional = NoneType in alternatives
        return {"type": _object_or_none if is_optional else _json_object, "metavar": "JSON"}
    if kind is int and NoneType in alternatives:
        return {"type": _integer_or_none, "metavar": "INTEGER|none" if default else "INTEGER"}
    if kind is int:
        return {"type": _integer, "metavar": "INTEGER"}
    return {"type": kind}


def _alternatives(hint: Any) -> list[Any]:
    """Return the members of a union, without the annotations around them."""
    if get_origin(hint) is Annotated:
        return _alternatives(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return [each for member in get_args(hint) for each in _alternatives(member)]
    return [hint]


def _is_converted(hint: Any) -> bool:
    """Return whether the dataclass converts a value before it checks its type."""
    return any(isinstance(each, BeforeValidator) for each in getattr(hint, "__metadata__", ()))


def _element_or_list(kind: Any) -> Callable[[str], Any]:
    """Return a converter of one element, or of a JSON list of them."""
    convert = _alternatives(kind)[0]

    def parse(text: str) -> Any:
        if text.startswith("["):
            try:
                return [convert(each) for each in json.loads(text)]
            except (ValueError, TypeError):
                raise click.BadParameter(f"{text!r} is not a JSON list.") from None
        try:
            return convert(text)
        except ValueError:
            raise click.BadParameter(f"{text!r} is not a valid {convert.__name__}.") from None

    parse.__name__ = {int: "integer", str: "text"}.get(convert, convert.__name__)
    return parse


def _json_object(text: str) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise click.BadParameter(f"{text!r} is not a JSON object.")
    return parsed


def _object_or_none(text: str) -> dict[str, Any] | None:
    """Read a JSON object, or ``none`` for None."""
    return None if text == "none" else _json_object(text)


def _integer(text: str | int) -> int:
    """Read an integer, which may have a suffix: 2k, 1.5k, 2K."""
    number = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgtKMGT])", str(text))
    try:
        if number is None:
            return int(text)
        value = float(number[1]) * MULTIPLIERS[number[2]]
        if not value.is_integer():
            raise ValueError
        return int(value)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a valid integer.") from None


def _integer_or_none(text: str | int) -> int | None:
    """Read an integer, or ``none`` or vLLM's ``auto`` for None."""
    if text in ("none", "auto"):
        return None
    try:
        return _integer(text)
    except click.BadParameter:
        raise click.BadParameter(f"{text!r} is neither an integer nor none.") from None
