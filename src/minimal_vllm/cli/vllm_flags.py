"""vLLM's flags for features that are not supported, and vLLM's syntax of lists and objects.

Such a flag is accepted at values that change nothing here, and refused at others with a sentence
that says what is supported. ``vllm_arguments`` declares them.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from minimal_vllm.cli.errors import Failure
from minimal_vllm.cli.options import FieldOption, SectionedCommand
from minimal_vllm.vllm_arguments import Unsupported, takes_no_value


class UnsupportedOption(click.Option):
    """A hidden option for one of vLLM's arguments that are not supported."""

    def __init__(self, name: str, unsupported: Unsupported) -> None:
        flag = name.replace("_", "-")
        is_flag = takes_no_value(unsupported.neutral[name])
        super().__init__(
            [f"--{flag}/--no-{flag}" if is_flag else f"--{flag}", name],
            default=None,
            hidden=True,
            help=f"Accepted at values that change nothing: {unsupported.instead}.",
            expose_value=False,
            callback=self._check,
            **({"is_flag": True} if is_flag else {"type": str}),
        )
        self._unsupported = unsupported

    def _check(self, _ctx: click.Context, _param: click.Parameter, value: Any) -> None:
        try:
            self._unsupported.check(str(self.name), _parse(value))
        except ValueError as error:
            raise Failure(str(error)) from error


def _parse(value: str | bool | None) -> Any:
    """Read what was typed as JSON, or else as text; ``none`` is None."""
    if not isinstance(value, str):
        return value
    return None if value.lower() == "none" else _parse_json(value)


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def unsupported_options(
    *groups: Mapping[str, Unsupported], without: Collection[str]
) -> Callable[[click.Command], click.Command]:
    """Decorate a command with a hidden option for each of vLLM's unsupported arguments.

    Args:
        *groups: the arguments, by name.
        without: names that are options of the command anyway.
    """
    by_name = {name: each for group in groups for name, each in group.items()}

    def decorate(command: click.Command) -> click.Command:
        command.params += [
            UnsupportedOption(name, unsupported)
            for name, unsupported in by_name.items()
            if name not in without
        ]
        return command

    return decorate


class VllmCommand(SectionedCommand):
    """A command that takes options in vLLM's syntax.

    Several values may follow the name of an option (``--served-model-name a b``), names may be
    written with underscores, and the keys of an object may be set one by one
    (``--hf-overrides.rope_theta 1e6``).
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, once they are in click's syntax."""
        repeatable = {
            name
            for param in self.params
            if isinstance(param, FieldOption) and param.multiple
            for name in param.opts
        }
        return super().parse_args(ctx, list(_repeat_names(join_dotted(args), repeatable)))


def join_dotted(args: Sequence[str]) -> list[str]:
    """Write the options that set a key of an object as one option with the object as JSON.

    ``--name.a.b 1 --name.c=x`` becomes ``--name={"a": {"b": 1}, "c": "x"}``, at the place of the
    first. A value is read as JSON, or else as text; an option without a value is true. As in vLLM,
    a plus sign after a key appends to a list: ``--name.a+ 1 --name.a+ 2``.

    Raises:
        click.UsageError: two options disagree, such as ``--name.a 1 --name.a.b 2``.
    """
    joined: list[str] = []
    objects: dict[str, tuple[int, dict[str, Any]]] = {}
    rest = list(args)
    while rest:
        option = rest.pop(0)
        name, equals, text = option.partition("=")
        name, *keys = name.split(".")
        if not (keys and all(keys) and name.startswith("--")):
            joined.append(option)
            continue
        has_value = equals or (rest and not rest[0].startswith("--"))
        value = _parse_json(text if equals else rest.pop(0)) if has_value else True
        name = name.replace("_", "-")
        if name not in objects:
            objects[name] = (len(joined), {})
            joined.append("")
        place, found = objects[name]
        _set_key(found, [key.replace("-", "_") for key in keys], value, option)
        joined[place] = f"{name}={json.dumps(found)}"
    for name, (place, _) in objects.items():
        others = joined[:place] + joined[place + 1 :]
        if any(option.partition("=")[0].replace("_", "-") == name for option in others):
            raise click.UsageError(f"{name} is given whole and key by key: give one of them.")
    return joined


def _set_key(found: dict[str, Any], keys: Sequence[str], value: Any, option: str) -> None:
    """Set a key of an object, which is in the objects of the other keys before it."""
    *outer, last = keys
    for key in outer:
        inner = found.setdefault(key, {})
        if not isinstance(inner, dict):
            raise click.UsageError(f"{option} contradicts an earlier option, which sets {key}.")
        found = inner
    if last.endswith("+"):
        elements = found.setdefault(last[:-1], [])
        if isinstance(elements, list):
            elements.append(value)
            return
    elif last not in found:
        found[last] = value
        return
    raise click.UsageError(f"{option} contradicts an earlier option, which sets {last}.")


def _repeat_names(args: Iterable[str], repeatable: Collection[str]) -> Iterator[str]:
    """Write ``--name a b`` as ``--name a --name b``, and ``--some_name`` as ``--some-name``.

    A further value that is an existing file or folder is left alone: it is the command's argument.
    """
    name, num_values = "", 0
    for argument in args:
        if argument.startswith("-"):
            name, equals, value = argument.partition("=")
            if name.startswith("--"):
                name = name.replace("_", "-")
            num_values = 1 if equals else 0
            yield f"{name}{equals}{value}"
        else:
            if name in repeatable and num_values > 0 and not Path(argument).exists():
                yield name
            num_values += 1
            yield argument
