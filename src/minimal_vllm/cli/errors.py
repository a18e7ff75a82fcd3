"""One clear line for whatever goes wrong, and no traceback."""

from typing import IO, Any

import click
from pydantic import ValidationError
from pydantic_core import ErrorDetails


class Failure(click.ClickException):
    """Ends the command with one line on standard error: the user can do something about it."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line."""
        click.echo(f"minimal-vllm: error: {self.message}", file=file, err=file is None)


class StepFailure(Failure):
    """The engine could not compute a step, which is not the user's fault."""

    exit_code = 1


def describe_validation_error(error: ValidationError) -> str:
    """All complaints in one line, such as ``top_p: should be less than or equal to 1, not 2.0``."""
    return "; ".join(map(_describe, error.errors()))


def _describe(details: ErrorDetails) -> str:
    name = ".".join(map(str, details["loc"]))
    complaint = details["msg"].removeprefix("Value error, ")
    if complaint.startswith("Input should "):
        complaint = f"{complaint.removeprefix('Input ')}, not {details['input']!r}"
    return f"{name}: {complaint}" if name else complaint
