"""The view's own panels in a page, at a step of a recorded run, with a bar to move through it.

````
```{engine} What the panels show, for those who can't see them
:step: 24
:panels: pool,batch
:num_gpu_blocks_override: 12

What to look at.
```
````

Options beside these are fields of ``PlaygroundSettings``: the run is recorded when the site is
built. A link below the panels opens the same run in the playground.
"""

import gzip
import re
import shutil
from dataclasses import asdict, fields
from functools import lru_cache
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlencode

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from minimal_vllm_lab.view.playground import PlaygroundSettings, play
from minimal_vllm_lab.view.source import PACKAGE, SOURCE_ROOT, find_lines

PAGE = PACKAGE / "view" / "page"
VIEW = "view-page"
"""Folder of the built site that holds the view's page. ``view`` is a page of the site."""
PANELS = ("pool", "near", "batch", "queue", "numbers")
PLAYGROUND = "playground"
"""Page that lets the reader change a run."""


class EngineDirective(SphinxDirective):
    """``{engine} description``: panels of the view, and a caption."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True
    option_spec: ClassVar = {
        "step": directives.nonnegative_int,
        "request": directives.positive_int,
        "panels": directives.unchanged,
        **{field.name: directives.unchanged for field in fields(PlaygroundSettings)},
    }

    def run(self) -> list[nodes.Node]:
        """Return a figure, which shows its caption alone where scripts don't run."""
        options = dict(self.options)
        step, panels = options.pop("step", 0), options.pop("panels", "pool,batch")
        selected = {"request": options.pop("request")} if "request" in options else {}
        if unknown := set(panels.split(",")) - set(PANELS):
            raise self.error(f"there is no panel {', '.join(unknown)}: choose from {PANELS}")
        settings = self._settings(options)
        name = file_name(settings)
        self.env.metadata[self.env.docname].setdefault("runs", {})[name] = asdict(settings)
        root = "../" * self.env.docname.count("/")
        place = urlencode(
            {"panels": panels, "file": f"runs/{name}", "step": step, **selected}, safe=",/"
        )
        begin = (
            f'<figure class="engine"><iframe title="{escape(self.arguments[0])}" loading="lazy" '
            f'data-src="{root}{VIEW}/index.html?{place}"></iframe>'
            '<p class="no-panels">The panels of this figure need JavaScript and a web server.</p>'
            "<figcaption>"
        )
        change = f"{root}{PLAYGROUND}.html#{urlencode({**changed(settings), 'step': step})}"
        end = (
            f'<p><a href="{escape(change)}">Change this run in the playground</a></p>'
            "</figcaption></figure>"
        )
        caption = self.parse_content_to_nodes()
        return [nodes.raw("", begin, format="html"), *caption, nodes.raw("", end, format="html")]

    def _settings(self, options: dict[str, str]) -> PlaygroundSettings:
        try:
            settings = PlaygroundSettings(**options)  # type: ignore[arg-type]  # numbers as text
        except ValueError as error:
            raise self.error(str(error)) from error
        if complaint := record(settings)[1]:
            raise self.error(complaint)
        return settings


@lru_cache(maxsize=64)
def record(settings: PlaygroundSettings) -> tuple[bytes, str]:
    """Return the compressed trace of a run, and why it ended early, or an empty string."""
    run = play(settings)
    trace = gzip.compress(b"".join(run.lines), mtime=0)
    return trace, run.complaint.message if run.complaint else ""


def file_name(settings: PlaygroundSettings) -> str:
    """Return the name of the file of a run, the same for the same settings."""
    return f"{sha256(repr(settings).encode()).hexdigest()[:12]}.trace"


def changed(settings: PlaygroundSettings) -> dict[str, object]:
    """Return the fields that differ from their defaults."""
    default = asdict(PlaygroundSettings())
    return {name: value for name, value in asdict(settings).items() if value != default[name]}


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


def write(app: Sphinx, error: Exception | None) -> None:
    """Write the view's page and all runs into the built site."""
    if error or app.builder.format != "html":
        return
    folder = Path(app.outdir) / VIEW
    needs_server = shutil.ignore_patterns("pair.*", "beside.*", "source.js")
    shutil.copytree(PAGE, folder, dirs_exist_ok=True, ignore=needs_server)
    (folder / "index.html").write_text(view_page()[0], encoding="utf-8")
    (folder / "runs").mkdir(exist_ok=True)
    for data in app.env.metadata.values():
        for name, settings in data.get("runs", {}).items():
            (folder / "runs" / name).write_bytes(record(PlaygroundSettings(**settings))[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive; Sphinx calls this."""
    app.add_directive("engine", EngineDirective)
    app.add_js_file("panels.js", loading_method="defer")
    app.connect("env-updated", show_sources)
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
