"""``minimal-vllm check``: check a class that replaces a part of the engine."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import click

from minimal_vllm.cli.errors import Failure
from minimal_vllm_lab.check.suites import SUITES

STORAGE = "HYPOTHESIS_STORAGE_DIRECTORY"


@click.command(short_help="Check a scheduler, block pool, … of your own.")
@click.option("--scheduler", metavar="FILE.py:CLASS", help="Check this class as a scheduler.")
@click.option("--block-pool", metavar="FILE.py:CLASS", help="Check this class as a block pool.")
@click.option(
    "--eviction-policy", metavar="FILE.py:CLASS", help="Check this class as an eviction strategy."
)
@click.option(
    "--attention-backend", metavar="FILE.py:CLASS", help="Check this class as an attention backend."
)
@click.option("--sampler", metavar="FILE.py:CLASS", help="Check this class as a sampler.")
@click.option(
    "--guesser",
    metavar="FILE.py:CLASS",
    help="Check this class as a guesser, the method of --speculative-config.",
)
@click.pass_context
def check(ctx: click.Context, /, **parts: str | None) -> None:
    """Drive replacement classes with random traffic, and check that they follow the engine's rules.

    A mistake is shown as the shortest history of calls that leads to it. Exits with status 1 if
    there is a mistake.
    """
    given = {name: part for name, part in parts.items() if part}
    if not given:
        raise click.UsageError("Name a class, such as --scheduler my_file.py:MyScheduler.")
    has_failed = False
    for name, part in given.items():
        with searching():
            lesson = SUITES[name].check(part)
        if lesson is None:
            click.echo(f"✓ {part} does everything that the engine needs from {SUITES[name].title}.")
        else:
            has_failed = True
            click.echo("\n".join([f"{part}, as {SUITES[name].title}:", "", *lesson.lines()]))
    ctx.exit(int(has_failed))


@contextmanager
def searching() -> Iterator[None]:
    """Let Hypothesis store its files in a temporary folder while the context is open.

    Raises:
        Failure: Hypothesis is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        chosen = os.environ.setdefault(STORAGE, folder)
        try:
            yield
        except ModuleNotFoundError as error:
            if error.name != "hypothesis":
                raise
            raise Failure(
                "checks need hypothesis, which is not installed: pip install 'minimal-vllm[learn]'"
            ) from error
        finally:
            if chosen == folder:
                del os.environ[STORAGE]
