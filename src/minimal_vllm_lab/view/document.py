"""The documents that the page links to: Markdown, as pages that can be read."""

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
"""What ``pyproject.toml`` puts into the wheel."""

DOCS = INSTALLED_DOCS if INSTALLED_DOCS.is_dir() else PACKAGE.parent.parent / "docs"
IMAGES = (".svg", ".png")
DOCUMENTS = (".md", ".py", *IMAGES)
SOURCE = "src/"
"""Folder of both packages in the repository."""


def docs_page(name: str) -> str:
    """A document, or one of its scripts.

    Args:
        name: such as ``course/03-paging.md``.

    Raises:
        NoSuchPageError: there is none.
    """
    path = find_file(DOCS, name, (".md", ".py"))
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return listing_page(f"docs/{name}", text)
    tokens = _markdown().parse(text)
    for token in tokens:
        _place_links(token.children or [], name)
    _name_headings(tokens)
    html = _markdown().renderer.render(tokens, _markdown().options, {"name": name})
    return page(name, f'<body class="document"><main>{html}</main>')


def docs_image(name: str) -> Path:
    """The file of a picture in a document.

    Raises:
        NoSuchPageError: there is none.
    """
    return find_file(DOCS, name, IMAGES)


class _Renderer(RendererHTML):
    """Shows what the site's ``literalinclude`` does: code that is never copied into a document."""

    def fence(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        token = tokens[idx]
        directive, _, path = token.info.partition(" ")
        if directive != "{literalinclude}":
            return super().fence(tokens, idx, options, env)
        address = _address(path, env["name"])
        file = _file(_in_repository(path, env["name"]))
        if address is None or file is None:
            return f"<p>{escapeHtml(path)} is in the repository.</p>"
        wanted = dict(re.findall(r"^:([\w-]+): *(.*)$", token.content, re.M))
        symbol = wanted.get("pyobject")
        link = f"{address}?symbol={symbol}" if symbol else address
        return (
            f'<p class="origin"><a href="{link}">{escapeHtml(symbol or file.name)}</a></p>'
            f"<pre><code>{escapeHtml(_excerpt(file, wanted))}</code></pre>"
        )


@lru_cache(maxsize=1)
def _markdown() -> MarkdownIt:
    return MarkdownIt("commonmark", renderer_cls=_Renderer).enable("table")


def _excerpt(file: Path, wanted: dict[str, str]) -> str:
    """The lines that the options of a ``literalinclude`` ask for, in Sphinx's words."""
    lines = file.read_text(encoding="utf-8").splitlines()
    first, last = 0, len(lines)
    if "pyobject" in wanted:
        first, last = find_lines(file, wanted["pyobject"])
        first -= 1
    if "start-at" in wanted:
        first = _line_with(wanted["start-at"], lines, first, last)
    if "start-after" in wanted:
        first = _line_with(wanted["start-after"], lines, first, last) + 1
    if "end-before" in wanted:
        last = _line_with(wanted["end-before"], lines, first + 1, last)
    return dedent("\n".join(lines[first:last]))


def _line_with(text: str, lines: list[str], first: int, last: int) -> int:
    return next(i for i in range(first, last) if text.strip("'\"") in lines[i])


def _name_headings(tokens: Sequence[Token]) -> None:
    """Give each heading the id that links to it have on a code host."""
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            words = re.sub(r"[^\w\- ]", "", tokens[i + 1].content.lower())
            token.attrSet("id", words.strip().replace(" ", "-"))


def _place_links(tokens: list[Token], name: str) -> None:
    """Let links lead to what is served here, or, if it is not, nowhere: their text remains."""
    leads: list[bool] = []  # whether the links that are open lead somewhere
    for token in tokens:
        if token.type == "link_open":
            address = _address(str(token.attrs["href"]), name)
            leads.append(address is not None)
            token.attrs = {"href": address} if address is not None else {}
            token.tag = "a" if leads[-1] else "span"
        elif token.type == "link_close" and not leads.pop():
            token.tag = "span"
        elif token.type == "image":
            token.attrs["src"] = _address(str(token.attrs["src"]), name) or ""


def _address(link: str, name: str) -> str | None:
    """Where a link of the document ``name`` leads on this server; None: it is not served."""
    if "://" in link or link.startswith("#"):
        return link
    path, hash_sign, heading = link.partition("#")
    target = _in_repository(path, name)
    if _file(target) is None:
        return None
    return f"/view/{target.replace(SOURCE, 'source/')}{hash_sign}{heading}"


def _in_repository(path: str, name: str) -> str:
    """A path that is relative to the document ``name``, as one from the repository's root."""
    return posixpath.normpath(posixpath.join("docs", posixpath.dirname(name), path))


def _file(target: str) -> Path | None:
    """The file that is served for a path of the repository."""
    for prefix, folder, suffixes in (("docs/", DOCS, DOCUMENTS), (SOURCE, SOURCE_ROOT, SOURCES)):
        path = folder / target.removeprefix(prefix)
        if target.startswith(prefix) and path.suffix in suffixes and path.is_file():
            return path
    return None
