"""Make links to files of the repository work on the site as they do on a code host.

A link to a page of the site stays one. A link to any other file leads to a page that shows the
file, and so does a file's name in backticks.
"""

import os
from collections.abc import Iterator
from html import escape
from pathlib import Path
from types import UnionType
from typing import Any

from docutils import nodes
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.builders.html import StandaloneHTMLBuilder
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src"


class LinkToRepository(SphinxTransform):
    """Turns each link to a file of the repository into one that the site can follow."""

    default_priority = 500

    def apply(self, **kwargs: Any) -> None:  # noqa: ARG002 – docutils' signature
        """Replace the links that Markdown made, and the literals that are paths."""
        for node in list(self.document.findall(_is_markdown_link)):
            path, _, heading = node["reftarget"].partition("#")
            if node.get("refdomain") == "doc":  # to a document, which may lie outside of the site
                path, heading = f"/{path}.md", node.get("reftargetid") or ""
            if file := self._find(path, self._folders):
                node.replace_self(self._link(file, heading, node.children))
        for node in list(self.document.findall(nodes.literal)):
            folders = [SOURCES / "minimal_vllm", SOURCES, ROOT] if "." in node.astext() else []
            file = self._find(node.astext(), folders)
            if file and not _around(node, nodes.reference | addnodes.pending_xref):
                node.replace_self(self._link(file, "", [node.deepcopy()]))

    @property
    def _folders(self) -> list[Path]:
        """Folders that links may be relative to: those of this page and of its includes."""
        page = self.env.doc2path(self.env.current_document.docname)
        included = self.document.settings.record_dependencies.list
        return [page.parent, *(Path(each).parent for each in included if each.endswith(".md"))]

    def _find(self, path: str, folders: list[Path]) -> Path | None:
        if path.startswith("/"):
            folders, path = [self.env.srcdir], path[1:]
        for folder in folders:
            file = Path(os.path.normpath(folder / path))
            if file.is_file() and file.is_relative_to(ROOT):
                return file
        return None

    def _link(self, file: Path, heading: str, children: list[nodes.Node]) -> nodes.Element:
        """Return a reference to the page that is made from the file, or that shows it."""
        name = file.relative_to(ROOT).as_posix()
        page = self.config.included_pages.get(name) or self.env.path2doc(file)
        shown_on = self.env.current_document.docname
        where = {"refdoc": shown_on, "refexplicit": True}
        if page in self.env.found_docs:
            to = {"refdomain": "doc", "reftype": "myst", "reftarget": page}
            return addnodes.pending_xref("", *children, **where, **to, reftargetid=heading or None)
        self.env.metadata[shown_on].setdefault("shown_files", set()).add(name)
        to = {"refdomain": "", "reftype": "repository", "reftarget": name}
        return addnodes.pending_xref("", *children, **where, **to)


def _is_markdown_link(node: nodes.Node) -> bool:
    kinds = addnodes.pending_xref | addnodes.download_reference
    return isinstance(node, kinds) and node.get("reftype") == "myst"


def _around(node: nodes.Node, kind: type | UnionType) -> nodes.Element | None:
    """Return the nearest enclosing element of this kind, or None."""
    parent = node.parent
    while parent is not None and not isinstance(parent, kind):
        parent = parent.parent
    return parent


def resolve(
    app: Sphinx, _env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.Node
) -> nodes.reference | None:
    """Return a link to the page that shows a file, or None for any other reference."""
    if node["reftype"] != "repository":
        return None
    uri = app.builder.get_relative_uri(node["refdoc"], f"source/{node['reftarget']}")
    return nodes.reference("", "", content, internal=True, refuri=uri)


def source_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield a page for each file that some page of the site links to."""
    if not isinstance(app.builder, StandaloneHTMLBuilder):
        return
    names = set().union(*(each.get("shown_files", ()) for each in app.env.metadata.values()))
    for name in sorted(names):
        code = (ROOT / name).read_text(encoding="utf-8")
        try:
            language = get_lexer_for_filename(name).aliases[0]
        except ClassNotFound:
            language = "text"
        shown = app.builder.highlighter.highlight_block(
            code, language, linenos="inline", lineanchors="line", anchorlinenos=True
        )
        title = f'<h1 class="path">{escape(name)}</h1>'
        yield f"source/{name}", {"title": name, "body": f"{title}\n{shown}"}, "page.html"


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension; Sphinx calls this."""
    app.add_config_value("included_pages", {}, "env", dict)
    app.add_transform(LinkToRepository)
    app.connect("missing-reference", resolve)
    app.connect("html-collect-pages", source_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
