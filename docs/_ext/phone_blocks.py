"""Blocks of text and console output are marked with their widths, so that a phone can fit them.

Code is wrapped on a phone; a drawing in letters can't be, and gets smaller letters instead.
"""

from docutils import nodes
from sphinx.application import Sphinx

STEP = 8
WRAPPED = ("python", "json", "bash")


def mark_widths(_app: Sphinx, document: nodes.document) -> None:
    """Give each block a class such as ``columns-64``, the next multiple of eight columns."""
    for block in document.findall(nodes.literal_block):
        if block.get("language") not in WRAPPED:
            width = max(map(len, block.astext().splitlines()), default=0)
            block["classes"].append(f"columns-{-(-width // STEP) * STEP}")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the transform; Sphinx calls this."""
    app.connect("doctree-read", mark_widths)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
