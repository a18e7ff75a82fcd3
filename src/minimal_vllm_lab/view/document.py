"""Render the documents that the page links to, from Markdown to HTML."""

import posixpath
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from textwrap import dedent
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

from minimal_vllm_lab.view.formulas import block_formula
from minimal_vllm_lab.view.source import (
    PACKAGE,
    SOURCE_ROOT,
    SOURCES,
    find_file,
    find_lines,
    listing_page,
    page,
)

INSTALLED_DOCS = PACKAGE / "docs"
"""Folder of the documents in the wheel, as listed in ``pyproject.toml``."""

DOCS = INSTALLED_DOCS if INSTALLED_DOCS.is_dir() else PACKAGE.parent.parent / "docs"
IMAGES = (".svg", ".png")
DOCUMENTS = (".md", ".py", *IMAGES)
SOURCE = "src/"
"""Folder of both packages, relative to the repository."""


def docs_page(name: str) -> str:
    """Return a document, or a script in the documents, as an HTML page.

    Args:
        name: path below ``docs``, such as ``course/03-paging.md``.

    Raises:
        NoSuchPageError: there is no such document.
    """
    path = find_file(DOCS, name, (".md", ".py"))
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return listing_page(f"docs/{name}", text)
    return page(name, f'<body class="document"><main>{_html(text, name)}</main>')


def _html(text: str, name: str) -> str:
    """Return a document as HTML. Its links are relative to its ``name``, a path from ``docs``."""
    tokens = _markdown().parse(text)
    for token in tokens:
        _rewrite_links(token.children or [], name)
    _set_heading_ids(tokens)
    html: str = _markdown().renderer.render(tokens, _markdown().options, {"name": name})
    return html


def docs_image(name: str) -> Path:
    """Return the path of an image in the documents.

    Raises:
        NoSuchPageError: there is no such image.
    """
    return find_file(DOCS, name, IMAGES)


class _Renderer(RendererHTML):
    """Markdown renderer that typesets formulas, and includes code as Sphinx does."""

    def fence(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        token = tokens[idx]
        directive, _, path = token.info.partition(" ")
        if directive == "math":
            return block_formula(token.content)
        if directive == "{include}":
            return _included(path, env["name"])
        if directive != "{literalinclude}":
            return super().fence(tokens, idx, options, env)
        address = _address(path, env["name"])
        file = _file(_in_repository(path, env["name"]))
        if address is None or file is None:
            return f"<p>{escapeHtml(path)} is in the repository.</p>"
        include = dict(re.findall(r"^:([\w-]+): *(.*)$", token.content, re.M))
        symbol = include.get("pyobject")
        link = f"{address}?symbol={symbol}" if symbol else address
        return (
            f'<p class="origin"><a href="{link}">{escapeHtml(symbol or file.name)}</a></p>'
            f"<pre><code>{escapeHtml(_excerpt(file, include))}</code></pre>"
        )


def _included(path: str, name: str) -> str:
    """Return a document from outside ``docs``, which a document consists of, as HTML."""
    target = _in_repository(path, name)
    file = DOCS.parent / target
    if not file.is_file():
        return f"<p>{escapeHtml(target)} is in the repository.</p>"
    return _html(file.read_text(encoding="utf-8"), posixpath.relpath(target, "docs"))


@lru_cache(maxsize=1)
def _markdown() -> MarkdownIt:
    return MarkdownIt("commonmark", renderer_cls=_Renderer).enable("table")


def _excerpt(file: Path, options: dict[str, str]) -> str:
    """Return the lines of a file that the options of a ``literalinclude`` select.

    Supported options are ``pyobject``, ``start-at``, ``start-after`` and ``end-before``.
    """
    lines = file.read_text(encoding="utf-8").splitlines()
    first, last = 0, len(lines)
    if "pyobject" in options:
        first, last = find_lines(file, options["pyobject"])
        first -= 1
    if "start-at" in options:
        first = _line_with(options["start-at"], lines, first, last)
    if "start-after" in options:
        first = _line_with(options["start-after"], lines, first, last) + 1
    if "end-before" in options:
        last = _line_with(options["end-before"], lines, first + 1, last)
    return dedent("\n".join(lines[first:last]))


def _line_with(text: str, lines: list[str], first: int, last: int) -> int:
    return next(i for i in range(first, last) if text.strip("'\"") in lines[i])


def _set_heading_ids(tokens: Sequence[Token]) -> None:
    """Give each heading the id that GitHub would give it."""
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            words = re.sub(r"[^\w\- ]", "", tokens[i + 1].content.lower())
            token.attrSet("id", words.strip().replace(" ", "-"))


def _rewrite_links(tokens: list[Token], name: str) -> None:
    """Point links to this server; links to files that it does not serve become plain text."""
    served: list[bool] = []  # for each open link, whether its target is served
    for token in tokens:
        if token.type == "link_open":
            address = _address(str(token.attrs["href"]), name)
            served.append(address is not None)
            token.attrs = {"href": address} if address is not None else {}
            token.tag = "a" if served[-1] else "span"
        elif token.type == "link_close" and not served.pop():
            token.tag = "span"
        elif token.type == "image":
            token.attrs["src"] = _address(str(token.attrs["src"]), name) or ""


def _address(link: str, name: str) -> str | None:
    """Return the address on this server of a link in the document ``name``, or None."""
    if "://" in link or link.startswith("#"):
        return link
    path, hash_sign, heading = link.partition("#")
    target = _in_repository(path, name)
    if _file(target) is None:
        return None
    return f"/view/{target.replace(SOURCE, 'source/')}{hash_sign}{heading}"


def _in_repository(path: str, name: str) -> str:
    """Return a path relative to the document ``name`` as a path relative to the repository."""
    return posixpath.normpath(posixpath.join("docs", posixpath.dirname(name), path))


def _file(target: str) -> Path | None:
    """Return the served file at a path of the repository, or None."""
    for prefix, folder, suffixes in (("docs/", DOCS, DOCUMENTS), (SOURCE, SOURCE_ROOT, SOURCES)):
        path = folder / target.removeprefix(prefix)
        if target.startswith(prefix) and path.suffix in suffixes and path.is_file():
            return path
    return None
