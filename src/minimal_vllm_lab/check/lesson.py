"""Lessons: a broken rule, the reason for it, and the shortest history that breaks it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

WIDTH = 96
PACKAGE = Path(__file__).parents[1]
INSTALLED = PACKAGE / "docs"
COURSE = (INSTALLED if INSTALLED.is_dir() else PACKAGE.parents[1] / "docs") / "course"
"""Folder of the course's chapters."""


def openable(name: str, installed: Path) -> str:
    """Return a path that can be opened from the current folder.

    Args:
        name: path in the repository, which is returned in a clone of it.
        installed: path of the same file, which is returned elsewhere.
    """
    return name if Path(name).is_file() else str(installed)


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that a replaceable class of the engine must follow."""

    statement: str
    """The rule, in one sentence."""
    reason: str
    """Why the engine needs it."""
    chapter: str = ""
    """Chapter of the course that explains it, such as ``03-paging``. Default: none."""


class Broken(Exception):  # noqa: N818 - reads as "raise Broken(rule, …)"
    """Raised when a rule does not hold.

    Args:
        rule: the rule.
        found: what the checked class did.
        expected: what it should have done. Default: not stated.
    """

    def __init__(self, rule: Rule, found: str, expected: str = "") -> None:
        super().__init__(rule.statement)
        self.rule, self.found, self.expected = rule, found, expected


@dataclass(frozen=True, slots=True)
class Lesson:
    """One broken rule, with all that a reader needs to find the mistake."""

    rule: Rule
    history: Sequence[str]
    """The calls that lead to the mistake, with their results, one per line."""
    found: str
    expected: str

    def as_dict(self) -> dict[str, Any]:
        """Return the lesson as a dict that can be written as JSON."""
        return {
            "rule": self.rule.statement,
            "history": list(self.history),
            "expected": self.expected,
            "found": self.found,
            "why": self.rule.reason,
            "read": self._page if self.rule.chapter else "",
        }

    @property
    def _page(self) -> str:
        return f"docs/course/{self.rule.chapter}.md"

    def lines(self) -> Iterator[str]:
        """Yield the lesson as lines of text, without line breaks."""
        yield f"✗ {self.rule.statement}"
        yield ""
        if self.history:
            yield from (f"    {line}" for line in self.history)
            yield ""
        sections = {"expected": self.expected, "found": self.found, "why": self.rule.reason}
        for name, text in sections.items():
            for index, line in enumerate(_paragraph(text)):
                yield f"  {name if index == 0 else '':<10}{line}".rstrip()
        if self.rule.chapter:
            yield f"  {'read':<10}{openable(self._page, COURSE / Path(self._page).name)}"


def _paragraph(text: str) -> list[str]:
    """Return the lines of a text, with long lines wrapped."""
    return [piece for line in text.splitlines() for piece in wrap(line, WIDTH - 12) or [""]]
