"""Tables that are wider than a phone are laid out there as one card for each row.

Each cell of a card is shown below the heading of its column, which the style sheet takes from
``data-heading``. Tables that fit stay as they are.
"""

import re
from typing import Any

from bs4 import BeautifulSoup, Tag
from docutils import nodes
from sphinx.application import Sphinx

COLUMNS = 40
"""Number of small letters that fit beside each other on a phone of 390 pixels."""
GAP = 2
"""Room between two columns, in letters."""
READABLE = 11
"""Letters at least that a column of text gets, so that it is not a column of single words."""
LONG = 12
"""Letters from which on a cell has a line of its own in a card."""
ROLES = {"thead": "rowgroup", "tbody": "rowgroup", "tr": "row", "th": "columnheader", "td": "cell"}
"""What each element of a table is. Browsers may forget it when the style sheet lays them out."""


def lay_out(html: str) -> str:
    """Return a page in which each table that is too wide for a phone can be shown as cards."""

    def replace(match: re.Match[str]) -> str:
        table = BeautifulSoup(match[0], "html.parser").table
        if table is None or table.thead is None or width(table) <= COLUMNS:
            return match[0]
        mark(table)
        return str(table)

    return re.sub(r'<table class="docutils.*?</table>', replace, html, flags=re.DOTALL)


def width(table: Tag) -> int:
    """Return the number of letters that a table needs at least in its width."""
    rows = [
        [cell.get_text() for cell in row.find_all(["th", "td"])] for row in table.find_all("tr")
    ]
    columns = zip(*rows, strict=True)
    return sum(max(map(_cell_width, column)) + GAP for column in columns)


def _cell_width(text: str) -> int:
    longest_word = max(map(len, text.split()), default=0)
    return max(longest_word, min(len(text.strip()), READABLE))


def mark(table: Tag) -> None:
    """Give a table what the style sheet needs to show it as cards, and what keeps it a table."""
    _add_class(table, "cards")
    table["role"] = "table"
    for name, role in ROLES.items():
        for element in table.find_all(name):
            element["role"] = role
    headings = [cell.get_text().strip() for cell in table.select("thead th")]
    about = ""
    for row in table.select("tbody tr"):
        cells = row.find_all("td")
        cells[0]["role"] = "rowheader"
        for cell, heading in zip(cells, headings, strict=True):
            _mark_cell(cell, heading)
        about = cells[0].get_text().strip() or about
        if not cells[0].get_text().strip():
            cells[0]["data-above"] = about


def _mark_cell(cell: Tag, heading: str) -> None:
    text = cell.get_text().strip()
    if heading:
        cell["data-heading"] = heading
    if len(text) > LONG:
        _add_class(cell, "long")
    if not text:
        _add_class(cell, "nothing")


def _add_class(element: Tag, name: str) -> None:
    element["class"] = " ".join([*element.get_attribute_list("class"), name])


def change_page(
    _app: Sphinx,
    _name: str,
    _template: str,
    context: dict[str, Any],
    doctree: nodes.document | None,
) -> None:
    """Lay out the tables of a page of the site."""
    if doctree is not None and "<table" in context["body"]:
        context["body"] = lay_out(context["body"])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the change of pages; Sphinx calls this."""
    app.connect("html-page-context", change_page, priority=400)  # before the theme wraps tables
    return {"parallel_read_safe": True, "parallel_write_safe": True}
