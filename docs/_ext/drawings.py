"""``{drawing} name`` puts one of the course's figures into a page.

They are SVG within the page, so that they take the page's colors, by day and by night.
"""

from pathlib import Path

from docutils import nodes
from figures import FIGURES
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

SOURCES = sorted((Path(__file__).parent / "figures").glob("*.py"))


class DrawingDirective(SphinxDirective):
    """``{drawing} name``: one of the figures."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the figure."""
        name = self.arguments[0]
        if name not in FIGURES:
            raise self.error(f"there is no drawing {name}; there are {', '.join(FIGURES)}")
        for source in SOURCES:
            self.env.note_dependency(str(source))
        return [nodes.raw("", FIGURES[name].svg(f"drawing-{name}"), format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive; Sphinx calls this."""
    app.add_directive("drawing", DrawingDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
