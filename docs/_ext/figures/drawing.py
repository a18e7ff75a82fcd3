"""A sheet to draw on, and the list of all figures.

360 units are the width of a phone, where a unit is about a pixel.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 360

Points = Sequence[tuple[float, float]]


class Drawing:
    """A sheet, to which shapes are added from back to front.

    Args:
        name: what the ids of its parts begin with; unique on a page.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._shapes: list[str] = []

    def box(
        self, x: float, y: float, width: float, height: float, kind: str, text: str = ""
    ) -> None:
        """Add a rectangle of a kind (a class of ``site.css``), with a text in its middle."""
        self._shapes.append(
            f'<rect class="{kind}" x="{x:g}" y="{y:g}" '
            f'width="{width:g}" height="{height:g}" rx="2"/>'
        )
        if text:
            self.text(x + width / 2, y + height / 2 + 4, text, f"middle on-{kind}")

    def cells(
        self, x: float, y: float, size: float, texts: Sequence[str], kinds: Sequence[str]
    ) -> None:
        """Add a row of squares that nearly touch, each with its text and its kind."""
        for index, (text, kind) in enumerate(zip(texts, kinds, strict=True)):
            self.box(x + index * size, y, size - 2, size - 2, kind)
            if text:
                place = x + index * size + size / 2 - 1, y + size / 2 + 3
                self.text(*place, text, f"middle small on-{kind}")

    def text(self, x: float, y: float, text: str, kind: str = "") -> None:
        """Add a text. Its kind may be ``middle``, ``end``, ``small``, ``strong``, or several."""
        self._shapes.append(f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(text)}</text>')

    def line(self, points: Points, kind: str = "arrow") -> None:
        """Add a line through points: an ``arrow``, a ``rule``, or another kind."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        end = f' marker-end="url(#{self._name}-arrow)"' if kind == "arrow" else ""
        self._shapes.append(f'<polyline class="{kind}" points="{path}"{end}/>')

    def span(self, start: float, end: float, y: float, text: str) -> None:
        """Add a bracket under what lies between two places, with a text under its middle."""
        self.line([(start, y - 5), (start, y), (end, y), (end, y - 5)], "rule")
        self.text((start + end) / 2, y + 13, text, "middle small")

    def legend(self, y: float, entries: Sequence[tuple[float, str, str]]) -> None:
        """Add a row that says what colors mean: each entry has a place, a kind and a text."""
        for x, kind, text in entries:
            self.box(x, y, 11, 11, kind)
            self.text(x + 16, y + 10, text, "small")

    def svg(self, title: str, description: str, height: float) -> str:
        """Return the sheet as a part of a page, with words for those who don't see it."""
        return (
            f'<figure class="drawing"><svg viewBox="0 0 {WIDTH} {height:g}" role="img" '
            f'aria-labelledby="{self._name}-title {self._name}-description">'
            f'<title id="{self._name}-title">{escape(title)}</title>'
            f'<desc id="{self._name}-description">{escape(description)}</desc>'
            f'<defs><marker id="{self._name}-arrow" viewBox="0 0 8 8" refX="7" refY="4" '
            'markerWidth="7" markerHeight="7" orient="auto-start-reverse">'
            '<path d="M0 0 8 4 0 8z"/></marker></defs>'
            f"{''.join(self._shapes)}</svg></figure>"
        )


@dataclass(frozen=True)
class Figure:
    """One of the course's figures."""

    title: str
    """What it is of."""

    description: str
    """What it shows, for those who don't see it."""

    draw: Callable[[Drawing], float]
    """Draws it, and returns its height."""

    def svg(self, name: str) -> str:
        """Draw it, as a part of a page."""
        drawing = Drawing(name)
        height = self.draw(drawing)
        return drawing.svg(self.title, self.description, height)


FIGURES: dict[str, Figure] = {}
"""All figures by their names, which are those of the functions that draw them."""


def figure(
    title: str, description: str
) -> Callable[[Callable[[Drawing], float]], Callable[[Drawing], float]]:
    """Enter a function that draws into the list of figures."""

    def enter(draw: Callable[[Drawing], float]) -> Callable[[Drawing], float]:
        FIGURES[draw.__name__.replace("_", "-")] = Figure(title, description, draw)
        return draw

    return enter
