"""The view's own panels in a page, at a step of a recorded run, with a bar to move through it.

They take the place of a picture, such as ``images/panels/paging.png``, which is all that those see
who read the page without the site. ``recorded_panels.py`` lists the runs, which are recorded when
the site is built. A link below the panels opens the same run in the playground.
"""

import re
import shutil
from collections.abc import Iterable
from html import escape
from pathlib import Path, PurePosixPath
from typing import Any

import recorded_panels
from docutils import nodes
from recorded_panels import PANELS, RecordedPanels, record
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

from minimal_vllm_lab.view.source import PACKAGE, SOURCE_ROOT, find_lines

PAGE = PACKAGE / "view" / "page"
VIEW = "view-page"
"""Folder of the built site that holds the view's page. ``view`` is a page of the site."""
PLAYGROUND = "playground"
"""Page that lets the reader change a run."""


class ShowPanels(SphinxTransform):
    """Puts panels beside their picture. Where scripts run, they are shown instead of it."""

    default_priority = 500

    def apply(self, **kwargs: Any) -> None:  # noqa: ARG002 - docutils' signature
        """Put them there, and build the page again when the table of runs changes."""
        for image in list(self.document.findall(nodes.image)):
            path = PurePosixPath(image["uri"])
            if path.parts[-3:-1] != ("images", "panels"):
                continue
            if path.stem not in PANELS:
                raise ValueError(f"there are no panels {path.stem}; there are {', '.join(PANELS)}")
            self.env.note_dependency(recorded_panels.__file__)
            image["classes"].append("no-panels")
            figure = self._figure(image, PANELS[path.stem])
            (image.parent if len(image.parent.children) == 1 else image).replace_self(figure)

    def _figure(self, image: nodes.image, shown: RecordedPanels) -> list[nodes.Node]:
        shown_on = self.env.current_document.docname
        self.env.metadata[shown_on].setdefault("panels", []).append(shown)
        root = "../" * shown_on.count("/")
        begin = (
            f'<figure class="engine"><iframe title="{escape(image["alt"])}" loading="lazy" '
            f'data-src="{root}{VIEW}/index.html?{escape(shown.query)}"></iframe>'
        )
        change = escape(f"{root}{PLAYGROUND}.html#{shown.change}")
        end = (
            '<figcaption><p class="no-panels">A picture: the panels need JavaScript and a web '
            f'server.</p><p><a href="{change}">Change this run in the playground</a></p>'
            "</figcaption></figure>"
        )
        return [nodes.raw("", begin, format="html"), image, nodes.raw("", end, format="html")]


def view_page() -> tuple[str, set[str]]:
    """Return the view's page with links to the site, and the files of the sources that it links to.

    The page itself links to the server that ``minimal-vllm view`` is.
    """
    shown = set()

    def link_to_source(match: re.Match[str]) -> str:
        name, symbol = match.groups()
        shown.add(f"src/{name}")
        line, _ = find_lines(SOURCE_ROOT / name, symbol)
        return f"../source/src/{name}.html#line-{line}"

    html = (PAGE / "index.html").read_text(encoding="utf-8")
    html = re.sub(r"/view/source/([\w/.]+)\?symbol=([\w.]+)", link_to_source, html)
    html = re.sub(r"/view/docs/([\w/.-]+)\.md", r"../\1.html", html)
    return html.replace("/view/page/", ""), shown


def show_sources(app: Sphinx, env: object) -> None:  # noqa: ARG001 - Sphinx's signature
    """Let the site have a page for each source that the view's page links to."""
    if app.env.metadata:
        app.env.metadata[app.config.root_doc].setdefault("shown_files", set()).update(
            view_page()[1]
        )


def write_view(folder: Path, panels: Iterable[RecordedPanels]) -> None:
    """Write the view's page, and the runs that panels show, into a folder."""
    needs_server = shutil.ignore_patterns("pair.*", "beside.*", "source.js")
    shutil.copytree(PAGE, folder, dirs_exist_ok=True, ignore=needs_server)
    (folder / "index.html").write_text(view_page()[0], encoding="utf-8")
    (folder / "runs").mkdir(exist_ok=True)
    for each in panels:
        (folder / "runs" / each.run).write_bytes(record(each.settings))


def write(app: Sphinx, error: Exception | None) -> None:
    """Write the view's page and all runs into the built site."""
    if error or app.builder.format != "html":
        return
    panels = [each for data in app.env.metadata.values() for each in data.get("panels", ())]
    write_view(Path(app.outdir) / VIEW, panels)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the transform; Sphinx calls this."""
    app.add_transform(ShowPanels)
    app.add_js_file("panels.js", loading_method="defer")
    app.connect("env-updated", show_sources)
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
