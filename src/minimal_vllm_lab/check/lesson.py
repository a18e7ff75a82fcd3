"""What a failed check teaches: a rule, why it is one, and the shortest history that breaks it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import wrap

WIDTH = 96


@dataclass(frozen=True, slots=True)
class Rule:
    """What must hold, whatever happens."""

    says: str
    why: str
    chapter: str = ""
    """The page of the course that explains it, such as ``03-paging``."""


class Broken(Exception):  # noqa: N818 - a rule is
    """A rule does not hold.

    Args:
        rule: which.
        found: what was seen instead.
        expected: what should have been seen, where that can be said.
    """

    def __init__(self, rule: Rule, found: str, expected: str = "") -> None:
        super().__init__(rule.says)
        self.rule, self.found, self.expected = rule, found, expected


@dataclass(frozen=True, slots=True)
class Lesson:
    """One broken rule, ready to be read."""

    rule: Rule
    history: Sequence[str]
    """The calls that led there, and what they gave."""
    found: str
    expected: str

    def lines(self) -> Iterator[str]:
        """The lesson as text."""
        yield f"✗ {self.rule.says}"
        yield ""
        if self.history:
            yield from (f"    {line}" for line in self.history)
            yield ""
        parts = {"expected": self.expected, "found": self.found, "why": self.rule.why}
        if self.rule.chapter:
            parts["read"] = f"docs/course/{self.rule.chapter}.md"
        for name, text in parts.items():
            for index, line in enumerate(_paragraph(text)):
                yield f"  {name if index == 0 else '':<10}{line}".rstrip()


def _paragraph(text: str) -> list[str]:
    """Lines that are broken where the text breaks them, and where they are too long."""
    return [piece for line in text.splitlines() for piece in wrap(line, WIDTH - 12) or [""]]
