"""Command line options made from the fields of a dataclass, so that there is one list of them.

A field's name, type, default and docstring become an option's; its checks stay the dataclass's.
"""

import ast
import inspect
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource

from minimal_vllm.config import EngineConfig
from minimal_vllm.sampling_params import SamplingParams


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
            [f"--{name}/--no-{name}" if default is True else f"--{name}", field_name],
            default=None if required else default,
            show_default="the small built-in one" if required else default is not False,
            help=f"{doc} Can be repeated." if "multiple" in kind else doc,
            **kind,
        )
        self.owner = owner
        self.heading = heading


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
    SamplingParams: "Sampling (what the model's generation_config.json asks for comes before the "
    "defaults shown)",
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
    """Decorates a command with an option for each field of a dataclass.

    Args:
        owner: the dataclass; each field has a docstring under it.
        without: fields that get no option.
        defaults: what the command takes for some fields in place of the dataclass's defaults.
        named: what it calls some options, which else have their fields' names.
        heading: title of the options' section in ``--help``. Default: the one in ``HEADINGS``.
    """
    hints, docs = get_type_hints(owner), _field_docs(owner)
    section = heading or HEADINGS.get(owner, "Options")

    def decorate(command: click.Command) -> click.Command:
        for field in fields(owner):
            if field.name not in without:
                hint, doc = hints[field.name], docs[field.name]
                default = defaults.get(field.name, field.default)
                name = named.get(field.name, field.name.replace("_", "-"))
                command.params.append(
                    FieldOption(owner, field.name, name, hint, default, doc, section)
                )
        return command

    return decorate


def given_options(ctx: click.Context, owner: type) -> dict[str, Any]:
    """The fields of ``owner`` that were set on the command line; the others keep their defaults."""
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
    """The arguments of ``click.Option`` that make it take values of this type."""
    if hint is bool:
        return {"is_flag": True}
    alternatives = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kind = [each for each in alternatives if each is not NoneType][-1]  # str | list[str]: the list
    if get_origin(kind) is Literal:
        return {"type": click.Choice(get_args(kind))}
    if get_origin(kind) is list:
        return {"type": get_args(kind)[0], "multiple": True}
    if get_origin(kind) is dict or is_dataclass(kind):
        return {"type": _json_object, "metavar": "JSON"}
    if kind is int and NoneType in alternatives and default is not None:
        return {"type": _integer_or_none, "metavar": "INTEGER|none"}
    return {"type": kind}


def _json_object(text: str) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise click.BadParameter(f"{text!r} is not a JSON object.")
    return parsed


def _integer_or_none(text: str | int) -> int | None:
    """Lets None be asked for where it is not the default."""
    try:
        return None if text == "none" else int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither an integer nor none.") from None


def _field_docs(owner: type) -> dict[str, str]:
    """The string under each field, which Python itself forgets."""
    statements = ast.parse(inspect.getsource(owner)).body
    definition = next(each for each in statements if isinstance(each, ast.ClassDef))
    return {
        field.target.id: inspect.cleandoc(doc.value.value).replace("``", "")
        for field, doc in zip(definition.body, definition.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(doc, ast.Expr)
        and isinstance(doc.value, ast.Constant)
        and isinstance(doc.value.value, str)
    }
