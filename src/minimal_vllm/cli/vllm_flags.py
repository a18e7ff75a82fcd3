"""vLLM's flags for features that are not supported, and vLLM's syntax of lists.

Such a flag is accepted at values that change nothing here, and refused at others with a sentence
that says what is supported. ``vllm_arguments`` declares them.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
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
    if value.lower() == "none":
        return None
    try:
        return json.loads(value)
    except ValueError:
        return value


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

    Several values may follow the name of an option (``--served-model-name a b``), and names may be
    written with underscores.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, once they are in click's syntax."""
        repeatable = {
            name
            for param in self.params
            if isinstance(param, FieldOption) and param.multiple
            for name in param.opts
        }
        return super().parse_args(ctx, list(_repeat_names(args, repeatable)))


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
