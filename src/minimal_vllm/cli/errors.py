"""Errors that end a command with one line on standard error."""

from typing import IO, Any

import click


class Failure(click.ClickException):
    """An error that the user can do something about. Ends the command with one line."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the error."""
        click.echo(f"minimal-vllm: error: {self.message}", file=file, err=file is None)


class StepFailure(Failure):
    """Error of an engine that could not compute a step."""

    exit_code = 1
