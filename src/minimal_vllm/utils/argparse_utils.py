"""``FlexibleArgumentParser``, with which scripts for vLLM read their arguments."""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any


class FlexibleArgumentParser(ArgumentParser):
    """An argument parser that takes ``--some_name`` for ``--some-name``."""

    def parse_known_args(  # type: ignore[override] # argparse overloads it for each namespace
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse arguments, once the underscores in their names are dashes."""
        given = sys.argv[1:] if args is None else args
        return super().parse_known_args([_with_dashes(each) for each in given], namespace)


def _with_dashes(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}"
