"""Puts the course's figures into pages that have them as images, such as ``images/figures/x.svg``.

In the page they are SVG, so that they take the page's colors, by day and by night. The files are
for those who read a page without the site; ``figures/alone.py`` writes them.
"""

from pathlib import Path, PurePosixPath
from typing import Any

from docutils import nodes
from figures import FIGURES
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

SOURCES = sorted((Path(__file__).parent / "figures").glob("*.py"))


class DrawFigures(SphinxTransform):
    """Replaces each image that is one of the figures by the figure."""

    default_priority = 500

    def apply(self, **kwargs: Any) -> None:  # noqa: ARG002 - docutils' signature
        """Replace them, and redraw them when the code that draws them changes."""
        for image in list(self.document.findall(nodes.image)):
            path = PurePosixPath(image["uri"])
            if path.parts[-3:-1] != ("images", "figures"):
                continue
            name = path.stem
            if name not in FIGURES:
                raise ValueError(f"there is no figure {name}; there are {', '.join(FIGURES)}")
            for source in SOURCES:
                self.env.note_dependency(str(source))
            drawn = nodes.raw("", FIGURES[name].svg(f"drawing-{name}"), format="html")
            (image.parent if len(image.parent.children) == 1 else image).replace_self(drawn)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the transform; Sphinx calls this."""
    app.add_transform(DrawFigures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
