"""The source and the documents that the page links to, as pages of their own."""

import ast
import html
from functools import lru_cache
from importlib import resources
from pathlib import Path

PACKAGE = Path(str(resources.files("minimal_vllm")))
DOCS = PACKAGE.parent.parent / "docs"
"""Present where the package runs from the repository; an installed one has none."""


class NoSuchPageError(ValueError):
    """There is no such file, or nothing of that name in it."""


def source_page(name: str, symbol: str | None = None) -> str:
    """A file of the package, with an anchor on each line.

    Args:
        name: such as ``cache/block_pool.py``.
        symbol: a function, class or method, which is highlighted and scrolled to.

    Raises:
        NoSuchPageError: there is none.
    """
    path = _inside(PACKAGE, name, (".py", ".js", ".css"))
    lines = path.read_text(encoding="utf-8").splitlines()
    first, last = find_lines(path, symbol) if symbol else (0, -1)
    return _page(f"minimal_vllm/{name}", lines, range(first, last + 1))


def docs_page(name: str) -> str:
    """A document, as it is written.

    Raises:
        NoSuchPageError: there is none.
    """
    path = _inside(DOCS, name, (".md",))
    return _page(f"docs/{name}", path.read_text(encoding="utf-8").splitlines(), range(0))


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


def _inside(folder: Path, name: str, suffixes: tuple[str, ...]) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder) or path.suffix not in suffixes or not path.is_file():
        raise NoSuchPageError(f"there is no {name}")
    return path


def _page(title: str, lines: list[str], marked: range) -> str:
    rows = "".join(
        f'<li id="L{number}" class="{"marked" if number in marked else ""}">{html.escape(line)}\n'
        for number, line in enumerate(lines, 1)
    )
    target = f' data-line="{marked.start}"' if marked else ""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title>"
        '<link rel="stylesheet" href="/view/page/style.css">'
        f'<body class="source"{target}><h1>{html.escape(title)}</h1><pre><ol>{rows}</ol></pre>'
        '<script type="module" src="/view/page/source.js"></script></body></html>'
    )
