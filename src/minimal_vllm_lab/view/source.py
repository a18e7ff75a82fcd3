"""The source that the page links to, as pages of their own."""

import ast
import html
from functools import lru_cache
from importlib import resources
from pathlib import Path

PACKAGE = Path(str(resources.files("minimal_vllm_lab")))
SOURCE_ROOT = PACKAGE.parent
"""Folder that holds both packages."""
PACKAGES = ("minimal_vllm", "minimal_vllm_lab")
SOURCES = (".py", ".js", ".css")


class NoSuchPageError(ValueError):
    """There is no such file, or nothing of that name in it."""


def source_page(name: str, symbol: str | None = None) -> str:
    """A file of the package, with an anchor on each line.

    Args:
        name: such as ``minimal_vllm/cache/block_pool.py``.
        symbol: a function, class or method, which is highlighted and scrolled to.

    Raises:
        NoSuchPageError: there is none.
    """
    if name.partition("/")[0] not in PACKAGES:
        raise NoSuchPageError(f"there is no {name}")
    path = find_file(SOURCE_ROOT, name, SOURCES)
    first, last = find_lines(path, symbol) if symbol else (0, -1)
    text = path.read_text(encoding="utf-8")
    return listing_page(name, text, range(first, last + 1))


@lru_cache(maxsize=64)
def find_lines(path: Path, symbol: str) -> tuple[int, int]:
    """The first and the last line, counted from 1, of ``Class.method``, say.

    Raises:
        NoSuchPageError: the file has no such thing.
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
    """A file in a folder, or in one below it, of one of these kinds.

    Raises:
        NoSuchPageError: there is none.
    """
    path = (folder / name).resolve()
    if (
        not path.is_relative_to(folder.resolve())
        or path.suffix not in suffixes
        or not path.is_file()
    ):
        raise NoSuchPageError(f"there is no {name}")
    return path


def listing_page(title: str, text: str, marked: range = range(0)) -> str:
    """A text as it is written, in numbered lines; the first of the marked ones is scrolled to."""
    rows = "".join(
        f'<li id="L{number}" class="{"marked" if number in marked else ""}">{html.escape(line)}\n'
        for number, line in enumerate(text.splitlines(), 1)
    )
    target = f' data-line="{marked.start}"' if marked else ""
    heading = f"<h1>{html.escape(title)}</h1>"
    return page(title, f'<body class="source"{target}>{heading}<pre><ol>{rows}</ol></pre>')


def page(title: str, body: str) -> str:
    """An HTML page in the style of the view.

    Args:
        title: what the browser calls it.
        body: HTML that begins with the tag of the body, which it leaves open.
    """
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title>"
        '<link rel="icon" href="data:,"><link rel="stylesheet" href="/view/page/style.css">'
        f'{body}<script type="module" src="/view/page/source.js"></script></body></html>'
    )
