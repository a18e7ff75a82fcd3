"""``minimal-vllm learn``: exercises in writing parts of the engine, with checks."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import click

from minimal_vllm.cli.errors import Failure
from minimal_vllm.plugin import load_file
from minimal_vllm_lab.check.lesson import openable
from minimal_vllm_lab.commands.check import searching
from minimal_vllm_lab.learn.exercises import EXERCISES, Exercise
from minimal_vllm_lab.learn.progress import Progress
from minimal_vllm_lab.view.source import SOURCE_ROOT

if TYPE_CHECKING:
    from minimal_vllm_lab.check.lesson import Lesson

MARKS = {"not started": "·", "started": "…", "solved": "✓"}


class ExerciseName(click.ParamType[Exercise]):
    """Click type: the name of an exercise."""

    name = "exercise"

    def convert(
        self, value: str | Exercise, param: click.Parameter | None, ctx: click.Context | None
    ) -> Exercise:
        """Return the exercise of that name, or fail with the list of all names."""
        if isinstance(value, Exercise):
            return value
        if value not in EXERCISES:
            self.fail(
                f"there is no exercise {value!r}; the exercises are: {', '.join(EXERCISES)}",
                param,
                ctx,
            )
        return EXERCISES[value]


EXERCISE = click.argument("exercise", metavar="EXERCISE", type=ExerciseName())
FILE = click.argument(
    "file", metavar="[FILE]", required=False, type=click.Path(path_type=Path, dir_okay=False)
)


@click.group(invoke_without_command=True, short_help="Write parts of the engine yourself.")
@click.pass_context
def learn(ctx: click.Context) -> None:
    """Write parts of the engine yourself, along with the course in docs/course/.

    Without a command, list all exercises and your progress. Your files are in the current folder.
    """
    if ctx.invoked_subcommand is None:
        _list()


@learn.command()
@EXERCISE
@FILE
def start(exercise: Exercise, file: Path | None) -> None:
    """Write the starter file of an exercise.

    The file explains what to write, and how it is checked.
    """
    path = file or Path(exercise.file_name)
    try:
        with path.open("x", encoding="utf-8") as target:
            target.write(exercise.starter)
    except FileExistsError:
        raise Failure(f"{path} already exists: delete it, or name another FILE") from None
    click.echo(f"Wrote {path}: {exercise.title}.")
    click.echo("The file explains what to write. Then check it:")
    click.echo(f"    minimal-vllm learn check {exercise.name}{f' {path}' if file else ''}")


@learn.command()
@EXERCISE
@click.argument("level", required=False, default=1, type=click.IntRange(min=1))
def hint(exercise: Exercise, level: int) -> None:
    """Print a hint for an exercise. LEVEL 1, the default, only asks a question; 3 says the most."""
    hints = exercise.hints
    if level > len(hints):
        raise Failure(f"{exercise.name} has {len(hints)} hints, there is no level {level}")
    click.echo(hints[level - 1])
    if level < len(hints):
        click.echo(f"\nMore: minimal-vllm learn hint {exercise.name} {level + 1}")


@learn.command()
@EXERCISE
@FILE
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, with points.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    help="Seed of the random cases. Default: the same cases in every run.",
)
@click.option(
    "--leaderboard",
    metavar="BOARD.json",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Note the result in this file, and print its table. For beat-fcfs only.",
)
@click.option("--as", "name", help="Name on the leaderboard. Default: the name of the file.")
@click.pass_context
def check(
    ctx: click.Context,
    exercise: Exercise,
    file: Path | None,
    as_json: bool,
    seed: int | None,
    leaderboard: Path | None,
    name: str | None,
) -> None:
    """Check your solution of an exercise. Exits with status 1 if it is not correct yet."""
    path = _find(exercise, file)
    if leaderboard and exercise.name != "beat-fcfs":
        raise Failure(f"{exercise.name} is right or wrong: only beat-fcfs has a leaderboard")
    if leaderboard and seed is not None:
        raise Failure("a leaderboard compares results with the same traffic: leave out --seed")
    if leaderboard and as_json:
        raise Failure("--leaderboard prints a table: leave out --json")
    if name and not leaderboard:
        raise Failure("--as is a name on a leaderboard: name its file with --leaderboard")
    if exercise.needs_triton:
        _prepare_triton()
    if as_json:
        ctx.exit(_print_json(exercise, path, seed))
    module = _load(exercise, path)
    lesson = _check(exercise, module, seed)
    if lesson is not None:
        click.echo("\n".join(lesson.lines()))
        click.echo(f"\nStuck? minimal-vllm learn hint {exercise.name}")
        ctx.exit(1)
    if file is None:
        Progress(Path()).note_solved(exercise)
    _report_success(exercise, path)
    if leaderboard:
        _print_leaderboard(leaderboard, name or path.stem, module)


@learn.command(context_settings={"ignore_unknown_options": True})
@EXERCISE
@click.argument("words", metavar="[FILE] [OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(ctx: click.Context, exercise: Exercise, words: Sequence[str]) -> None:
    """Run the engine with your solution.

    Most exercises open the view in your browser, beat-fcfs runs the simulator. OPTIONS, such as
    --no-browser, are passed to the command that is run, which is printed.
    """
    has_file = bool(words) and not words[0].startswith("-")
    file, options = (Path(words[0]), words[1:]) if has_file else (None, words)
    if not exercise.run:
        runnable = ", ".join(name for name, each in EXERCISES.items() if each.run)
        raise Failure(
            f"{exercise.name} is too small to run by itself; exercises that can be run: {runnable}"
        )
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
    click.echo("\n✓ solved   … started   · not started   The number is the chapter.")
    unsolved = [name for name, each in EXERCISES.items() if progress.state(each) == "not started"]
    if unsolved:
        click.echo(f"Next: minimal-vllm learn start {unsolved[0]}")


def _find(exercise: Exercise, file: Path | None) -> Path:
    path = file or Path(exercise.file_name)
    if not path.is_file():
        raise Failure(f"there is no {path}: run minimal-vllm learn start {exercise.name} first")
    return path


def _load(exercise: Exercise, path: Path) -> ModuleType:
    """Load a learner's file.

    Raises:
        ValueError: the file can't be loaded, lacks a name of the starter file, or only inherits
            what was to be written.
    """
    module = load_file(path)
    for name in (each.partition(".")[0] for each in exercise.solutions):
        if not hasattr(module, name):
            raise ValueError(f"{path} has no {name}: keep the names of the starter file")
    if not any(_is_own(module, each) for each in exercise.solutions):
        raise ValueError(f"{path} defines none of {', '.join(exercise.solutions)}: write them")
    return module


def _is_own(module: ModuleType, name: str) -> bool:
    """Return whether a module has a function, or has written ``Class.method`` itself."""
    found, _, method = name.partition(".")
    if not method:
        return True  # a function can't be inherited
    kinds = getattr(module, found).__mro__
    return any(method in vars(kind) for kind in kinds if kind.__module__ == module.__name__)


def _check(exercise: Exercise, module: ModuleType, seed: int | None) -> "Lesson | None":
    with searching():
        return exercise.check(module, seed)


def _print_json(exercise: Exercise, path: Path, seed: int | None) -> int:
    """Check a file, print the result as JSON, and return the exit status.

    Whatever the learner's code prints goes to standard error.
    """
    error, lesson = "", None
    with redirect_stdout(sys.stderr):
        try:
            module = _load(exercise, path)
        except (ValueError, SystemExit) as problem:
            error = f"{problem}" or "the file ends the program"
        else:
            lesson = _check(exercise, module, seed)
    passed = not error and lesson is None
    result = {
        "exercise": exercise.name,
        "file": str(path),
        "seed": seed,
        "passed": passed,
        "points": exercise.points * passed,
        "max_points": exercise.points,
        "error": error,
        "lesson": lesson.as_dict() if lesson else None,
    }
    click.echo(json.dumps(result, indent=1, ensure_ascii=False))
    return int(not passed)


def _print_leaderboard(path: Path, name: str, module: ModuleType) -> None:
    from minimal_vllm_lab.check.search import History
    from minimal_vllm_lab.learn.check_order import race
    from minimal_vllm_lab.learn.leaderboard import Leaderboard

    rows = Leaderboard(path).add(name, race(module, History()))
    width = max(len(row.name) for row in rows)
    click.echo("\nplace  name" + " " * (width - 4) + "  p99 TTFT  less than fcfs")
    for place, row in enumerate(rows, 1):
        click.echo(
            f"{place:>5}  {row.name:<{width}}  {row.p99_ttft_ms:>5,.0f} ms  {row.gain:>8.1%}"
        )


def _prepare_triton() -> None:
    """Select Triton's interpreter if there is no GPU. To be called before Triton is imported."""
    if find_spec("triton") is None:
        raise Failure(
            f"this exercise needs Triton, which runs on Linux only (this is {sys.platform}): "
            f"pip install triton"
        )
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


def _report_success(exercise: Exercise, path: Path) -> None:
    click.echo(f"✓ {path} solves {exercise.name}.")
    names_in: dict[str, list[str]] = {}
    for solution in filter(None, exercise.solutions.values()):
        module, _, name = solution.partition(":")
        names_in.setdefault(module, []).append(name)
    if names_in:
        click.echo("Compare it with the engine's own code:")
    for module, names in names_in.items():
        file = f"{module.replace('.', '/')}.py"
        where = openable(f"src/{file}", SOURCE_ROOT / file)
        click.echo(f"    {', '.join(names)} in {where}")
    if exercise.run:
        click.echo(f"See it work: minimal-vllm learn run {exercise.name}")
    next_name = _next_name(exercise)
    if next_name:
        click.echo(f"Next: minimal-vllm learn start {next_name}")


def _next_name(exercise: Exercise) -> str | None:
    names = list(EXERCISES)
    later = names[names.index(exercise.name) + 1 :]
    return later[0] if later else None
