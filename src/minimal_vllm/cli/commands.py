"""Group of commands to which other packages can add commands."""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click
from pydantic import ValidationError

from minimal_vllm.cli.errors import Failure, StepFailure
from minimal_vllm.cli.interrupt import INTERRUPTED, raise_on_ctrl_c
from minimal_vllm.runner.failures import RankFailedError
from minimal_vllm.settings import describe

ENTRY_POINT_GROUP = "minimal_vllm.commands"
"""Group of the entry points by which a package adds commands; their names are the commands'."""


class Commands(click.Group):
    """A group of commands that reports every error as one line and ends quietly on Ctrl-C.

    Args:
        entry_point_group: group of the entry points that add commands. Each is imported when its
            command runs or is listed. Default: no commands are added.
    """

    def __init__(self, *args: Any, entry_point_group: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._entry_point_group = entry_point_group

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, sorted."""
        return sorted({*super().list_commands(ctx), *self._added()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name, or None if there is none."""
        command = super().get_command(ctx, cmd_name)
        if command is None and cmd_name in (added := self._added()):
            command = added[cmd_name].load()
        return command

    def _added(self) -> dict[str, EntryPoint]:
        if self._entry_point_group is None:
            return {}
        return {each.name: each for each in entry_points(group=self._entry_point_group)}

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that ``ctx`` names.

        Raises:
            Failure: in place of any ValueError, OSError or RankFailedError.
        """
        try:
            raise_on_ctrl_c()
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            raise  # click ends quietly: the reader of our output wants no more
        except ValidationError as error:
            raise Failure(describe(error)) from error
        except OSError as error:
            is_about_a_file = error.filename and error.strerror
            message = f"{error.filename}: {error.strerror}" if is_about_a_file else str(error)
            raise Failure(message) from error
        except RankFailedError as error:
            raise StepFailure(str(error)) from error
        except ValueError as error:
            raise Failure(str(error)) from error
