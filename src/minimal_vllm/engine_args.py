"""``EngineArgs``: the engine's configuration from the command line of a script."""

import json
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from dataclasses import MISSING, fields
from typing import Any

from minimal_vllm.config import EngineConfig
from minimal_vllm.vllm_arguments import ENGINE, takes_no_value


class EngineArgs(EngineConfig):
    """An ``EngineConfig`` that is read with argparse, as vLLM's ``EngineArgs`` is."""

    @staticmethod
    def add_cli_args(parser: ArgumentParser) -> ArgumentParser:
        """Add an argument for each option of the engine, and for vLLM's other ones.

        Arguments that are not given are None, which ``LLM`` takes for the default.
        """
        docs: Any = getattr(EngineConfig, "__pydantic_fields__")  # noqa: B009 - not in its type
        for each in fields(EngineConfig):
            is_flag = isinstance(each.default, bool) or each.name == "async_scheduling"
            default = None if each.default is MISSING else each.default
            help_text = f"{docs[each.name].description} (default: {default})".replace("%", "%%")
            _add(parser, each.name, is_flag=is_flag, help_text=help_text)
        for name, unsupported in ENGINE.items():
            is_flag = takes_no_value(unsupported.neutral[name])
            _add(parser, name, is_flag=is_flag, help_text="accepted if it changes nothing")
        return parser

    @classmethod
    def from_cli_args(cls, args: Namespace) -> "EngineArgs":
        """Return the configuration that the arguments ask for.

        Raises:
            ValueError: an argument is out of range or not supported.
        """
        known = {each.name for each in fields(cls)} | ENGINE.keys()
        given = {name: value for name, value in vars(args).items() if name in known}
        return cls(**given)


def _add(parser: ArgumentParser, name: str, *, is_flag: bool, help_text: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    if is_flag:
        parser.add_argument(flag, action=BooleanOptionalAction, default=None, help=help_text)
    else:
        parser.add_argument(flag, type=_parse, default=None, help=help_text)


def _parse(text: str) -> Any:
    """Read JSON, or else text; ``none`` is None."""
    if text.lower() == "none":
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text
