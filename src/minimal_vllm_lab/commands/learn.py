"""``minimal-vllm learn``: write parts of the engine yourself, and have them checked."""

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import click

from minimal_vllm.cli.errors import Failure
from minimal_vllm.plugin import load_file
from minimal_vllm_lab.commands.check import searching
from minimal_vllm_lab.learn.exercises import EXERCISES, Exercise
from minimal_vllm_lab.learn.progress import Progress

MARKS = {"not started": "·", "started": "…", "solved": "✓"}


class ExerciseName(click.ParamType[Exercise]):
    """The name of an exercise."""

    name = "exercise"

    def convert(
        self, value: str | Exercise, param: click.Parameter | None, ctx: click.Context | None
    ) -> Exercise:
        """The exercise."""
        if isinstance(value, Exercise):
            return value
        if value not in EXERCISES:
            self.fail(f"there is no {value!r}, but: {', '.join(EXERCISES)}", param, ctx)
        return EXERCISES[value]


EXERCISE = click.argument("exercise", metavar="EXERCISE", type=ExerciseName())
FILE = click.argument(
    "file", metavar="[FILE]", required=False, type=click.Path(path_type=Path, dir_okay=False)
)


@click.group(invoke_without_command=True, short_help="Write parts of the engine yourself.")
@click.pass_context
def learn(ctx: click.Context) -> None:
    """Exercises, which go with the course in docs/course/; without a command: a list of them.

    Your files lie in the current folder.
    """
    if ctx.invoked_subcommand is None:
        _list()


@learn.command()
@EXERCISE
@FILE
def start(exercise: Exercise, file: Path | None) -> None:
    """Write the file to begin with."""
    path = file or Path(exercise.file_name)
    try:
        with path.open("x", encoding="utf-8") as target:
            target.write(exercise.starter)
    except FileExistsError:
        raise Failure(f"{path} is there already: delete it, or name another FILE") from None
    click.echo(f"Wrote {path}: {exercise.title}.")
    click.echo("It says what to do. Then:")
    click.echo(f"    minimal-vllm learn check {exercise.name}{f' {path}' if file else ''}")


@learn.command()
@EXERCISE
@FILE
@click.pass_context
def check(ctx: click.Context, exercise: Exercise, file: Path | None) -> None:
    """Check what you wrote. Ends with 1 if it is not right yet."""
    path = _find(exercise, file)
    if exercise.needs_triton:
        _prepare_triton()
    module = load_file(path)
    for name in (part.partition(".")[0] for part in exercise.parts):
        if not hasattr(module, name):
            raise Failure(f"{path} has no {name}: keep the names that the starter has")
    with searching():
        lesson = exercise.check(module)
    if lesson is not None:
        click.echo("\n".join(lesson.lines()))
        ctx.exit(1)
    if file is None:
        Progress(Path()).note_solved(exercise)
    _praise(exercise, path)


@learn.command(context_settings={"ignore_unknown_options": True})
@EXERCISE
@click.argument("words", metavar="[FILE] [OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(ctx: click.Context, exercise: Exercise, words: Sequence[str]) -> None:
    """Run the engine with what you wrote, and see it in the browser, or simulate it.

    OPTIONS, such as --no-browser, are passed on to the command that is run, and shown.
    """
    has_file = bool(words) and not words[0].startswith("-")
    file, options = (Path(words[0]), words[1:]) if has_file else (None, words)
    if not exercise.run:
        runnable = ", ".join(name for name, each in EXERCISES.items() if each.run)
        raise Failure(f"{exercise.name} is a part too small to run; these can be: {runnable}")
    path = _find(exercise, file)
    command = [*(word.format(file=path) for word in exercise.run), *options]
    click.echo(f"$ minimal-vllm {' '.join(command)}")
    root = ctx.find_root().command
    with root.make_context("minimal-vllm", command) as own:
        root.invoke(own)


def _list() -> None:
    progress = Progress(Path())
    width = max(map(len, EXERCISES))
    for name, exercise in EXERCISES.items():
        state = progress.state(exercise)
        remark = "" if state in MARKS else f" ({state})"
        mark, chapter = MARKS.get(state, "…"), exercise.chapter[:2]
        click.echo(f"{mark} {name:<{width}}  {chapter}  {exercise.title}{remark}")
    click.echo("\n✓ solved   … started   · not started   The number is the chapter's.")
    unsolved = [name for name, each in EXERCISES.items() if progress.state(each) == "not started"]
    if unsolved:
        click.echo(f"Next: minimal-vllm learn start {unsolved[0]}")


def _find(exercise: Exercise, file: Path | None) -> Path:
    path = file or Path(exercise.file_name)
    if not path.is_file():
        raise Failure(f"there is no {path}: begin with minimal-vllm learn start {exercise.name}")
    return path


def _prepare_triton() -> None:
    """Before Triton is imported it must know whether there is a GPU."""
    if find_spec("triton") is None:
        raise Failure(
            f"this exercise needs Triton, which there is for Linux only (this is {sys.platform}): "
            f"pip install triton"
        )
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


def _praise(exercise: Exercise, path: Path) -> None:
    click.echo(f"✓ {path} solves {exercise.name}.")
    own: dict[str, list[str]] = {}
    for place in filter(None, exercise.parts.values()):
        module, _, name = place.partition(":")
        own.setdefault(f"src/{module.replace('.', '/')}.py", []).append(name)
    if own:
        click.echo("The engine's own, to compare with:")
    for file, names in own.items():
        click.echo(f"    {', '.join(names)} in {file}")
    if exercise.run:
        click.echo(f"See it at work: minimal-vllm learn run {exercise.name}")
    following = _following(exercise)
    if following:
        click.echo(f"Next: minimal-vllm learn start {following}")


def _following(exercise: Exercise) -> str | None:
    names = list(EXERCISES)
    later = names[names.index(exercise.name) + 1 :]
    return later[0] if later else None
