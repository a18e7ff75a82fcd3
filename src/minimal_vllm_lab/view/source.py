"""Render source files that the page links to as HTML."""

import ast
import html
from functools import lru_cache
from importlib import resources
from pathlib import Path

PACKAGE = Path(str(resources.files("minimal_vllm_lab")))
SOURCE_ROOT = PACKAGE.parent
"""Folder that contains both packages."""
PACKAGES = ("minimal_vllm", "minimal_vllm_lab")
SOURCES = (".py", ".js", ".css")


class NoSuchPageError(ValueError):
    """Raised when a file, or a symbol in it, does not exist or is not served."""


def source_page(name: str, symbol: str | None = None) -> str:
    """Return a source file as an HTML page with numbered lines.

    Args:
        name: path of the file, such as ``minimal_vllm/cache/block_pool.py``.
        symbol: function, class or method to highlight and scroll to, such as
            ``BlockPool.allocate``.

    Raises:
        NoSuchPageError: there is no such file, or no such symbol in it.
    """
    if name.partition("/")[0] not in PACKAGES:
        raise NoSuchPageError(f"there is no file {name}")
    path = find_file(SOURCE_ROOT, name, SOURCES)
    first, last = find_lines(path, symbol) if symbol else (0, -1)
    text = path.read_text(encoding="utf-8")
    return listing_page(name, text, range(first, last + 1))


@lru_cache(maxsize=64)
def find_lines(path: Path, symbol: str) -> tuple[int, int]:
    """Return the first and the last line of a symbol, counted from 1.

    Args:
        path: the Python file.
        symbol: name of a function, class or method, such as ``Class.method``.

    Raises:
        NoSuchPageError: the file has no such symbol.
    """
    body: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
    node: ast.stmt | None = None
    for name in symbol.split("."):
        node = next((each for each in body if getattr(each, "name", None) == name), None)
        if node is None:
            raise NoSuchPageError(f"{path.name} has no {symbol}")
        body = getattr(node, "body", [])
    return node.lineno, node.end_lineno or node.lineno  # type: ignore[union-attr]


def find_file(folder: Path, name: str, suffixes: tuple[str, ...]) -> Path:
    """Return the path of a file below a folder.

    Args:
        folder: the folder.
        name: path of the file, relative to the folder.
        suffixes: allowed suffixes.

    Raises:
        NoSuchPageError: there is no such file, it is outside the folder, or it has another suffix.
    """
    path = (folder / name).resolve()
    if (
        not path.is_relative_to(folder.resolve())
        or path.suffix not in suffixes
        or not path.is_file()
    ):
        raise NoSuchPageError(f"there is no file {name}")
    return path


def listing_page(title: str, text: str, marked: range = range(0)) -> str:
    """Return a text as an HTML page with numbered lines.

    Args:
        title: the title of the page.
        text: the text.
        marked: line numbers to highlight; the page scrolls to the first one.
    """
    rows = "".join(
        f'<li id="L{number}" class="{"marked" if number in marked else ""}">{html.escape(line)}\n'
        for number, line in enumerate(text.splitlines(), 1)
    )
    target = f' data-line="{marked.start}"' if marked else ""
    heading = f"<h1>{html.escape(title)}</h1>"
    return page(title, f'<body class="source"{target}>{heading}<pre><ol>{rows}</ol></pre>')


def page(title: str, body: str) -> str:
    """Return an HTML page in the style of the view.

    Args:
        title: the title of the page.
        body: HTML that begins with the opening tag of the body, which is left open.
    """
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title>"
        '<link rel="icon" href="data:,"><link rel="stylesheet" href="/view/page/style.css">'
        f'{body}<script type="module" src="/view/page/source.js"></script></body></html>'
    )
