"""The pages tell the truth: all that they show to run runs, and prints what they show.

Code fences say which is which. Of ``console`` each command (after ``$``) is run, and what is shown
after it is compared with what it prints, errors included, but for the numbers, which are the
machine's unless they come from a simulation; one that is shown to print nothing has to succeed.
Each line of ``bash`` and each block of ``python`` is run and has to succeed. ``text`` is not run.
The commands of a page run in their order, in one folder, in which the repository's files lie; what
they write goes away with it.
"""

import re
import sys

import pytest

from tests.commands import run
from tests.markdown import ROOT, commands, is_as_shown, read, shown_commands

ELSEWHERE = {"server.md", "benchmarking.md", "cluster.md", "simulator.md", "view.md"}
"""Pages whose commands need a server, or are held to the last digit: ``test_docs.py`` of a room."""
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
    if path.name not in ELSEWHERE
]
FENCE = re.compile(r"^```(console|bash|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def steps(page):
    """What is run, in order: a command line, and what it has to print; None: it has to succeed."""
    for language, block in FENCE.findall(read(page)):
        if language == "console":
            for command, shown in shown_commands(block):
                yield ["bash", "-c", command], shown if shown.strip() else None
        elif language == "bash":
            for command in commands(block):
                yield ["bash", "-euo", "pipefail", "-c", command], None
        else:
            yield [sys.executable, "-c", block], None


@pytest.fixture
def folder(tmp_path):
    """A folder like the repository's, but for what is written to it, by whoever does exercises."""
    own = read(".gitignore").splitlines()
    for path in ROOT.iterdir():
        if not path.name.startswith(".") and path.name != "build" and f"/{path.name}" not in own:
            (tmp_path / path.name).symlink_to(path)
    return tmp_path


def rows(text):
    """The lines of a text, with one blank for several."""
    return {" ".join(line.split()) for line in text.splitlines()} - {"[…]"}


@pytest.mark.parametrize("page", [page for page in PAGES if any(steps(page))])
def test_what_a_page_shows_to_run_runs_and_prints_what_is_shown(page, folder, subtests):
    for command, shown in steps(page):
        with subtests.test(command=command[-1]):
            result = run(command, folder)
            if shown is None:
                assert result.returncode == 0, result.stdout
            else:
                assert is_as_shown(shown, result.stdout), result.stdout
                if "simulate" in command[-1]:
                    assert rows(shown) <= rows(result.stdout), result.stdout


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("4 blocks\n", "17 blocks\n", True),
        ("   4 of 16\n", "1,024 of 16\n", True),
        ("a\n[…]\nz\n", "a\nb\nc\nz\n", True),
        ("a\n[…]\nz\n", "a\nz\n", True),
        ("a […]\n", "a b c\n", True),
        ("a\nz\n", "a\nb\nz\n", False),
        ("4 blocks\n", "4 pages\n", False),
        ("a\n", "a\nb\n", False),
        ("a.c\n", "abc\n", False),
    ],
)
def test_what_is_printed_differs_from_what_is_shown_in_numbers_only(shown, printed, same):
    assert is_as_shown(shown, printed) == same
