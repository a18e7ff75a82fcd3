"""``{playground}``: the scheduler and the pool run in the reader's browser, behind the view.

Python for browsers is Pyodide, from its npm package; the packages that our sources need come from
pip's index. Both are pinned, and copied into the built site. Without npm or without a network the
site is built all the same, and the page says what it lacks.
"""

import base64
import hashlib
import inspect
import json
import shutil
import subprocess
import sys
import tarfile
import typing
from collections.abc import Iterator
from dataclasses import Field, fields
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import parse_qsl
from zipfile import ZIP_DEFLATED, ZipFile

from docutils import nodes
from engine_panels import VIEW
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging
from sphinx.util.docutils import ReferenceRole, SphinxDirective

from minimal_vllm.engine import scheduler
from minimal_vllm_lab.view import playground
from minimal_vllm_lab.view.playground import PlaygroundSettings

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src"
REQUIREMENTS = ROOT / "docs" / "playground-requirements.txt"
FOLDER = "python"
"""Folder of the built site that holds what the page's worker loads."""

PYODIDE = "314.0.7"
INTEGRITY = (
    "0YvXxEhfEdpLfb/XkM2BFAeMROq0iMUX2bzzH9pOttyMcWkwq+HbE5uyuGD82LN7y2q+SNvi/6V5JEsOlD2R1A=="
)
"""SHA-512 of the npm package, as npm's registry has it."""
PYODIDE_FILES = (
    *("pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm"),
    *("python_stdlib.zip", "pyodide-lock.json"),
)
PYTHON, PLATFORM = "3.14", "pyemscripten_2026_0_wasm32"
"""Version and platform of Pyodide's Python, as its ``pyodide-lock.json`` has them."""

STARTER = '''\
from minimal_vllm.engine.scheduler import Scheduler


class MyScheduler(Scheduler):
    """The engine's own scheduler, in another order."""

    def __init__(self, config, pool):
        super().__init__(config, pool)
        self.key = last_come_first_served


def last_come_first_served(request):
    """The request with the smallest key is served first and preempted last."""
    return 0, -request.arrival
'''


class PlaygroundDirective(SphinxDirective):
    """``{playground}``: a form for the settings, an editor for a scheduler, and the panels."""

    def run(self) -> list[nodes.Node]:
        """Return the page's form; its scripts are ``playground.js`` and a worker."""
        for module in (playground, scheduler):
            self.env.note_dependency(inspect.getsourcefile(module) or "")
        template = (ROOT / "docs" / "_ext" / "playground.html").read_text(encoding="utf-8")
        self.env.note_dependency(str(ROOT / "docs" / "_ext" / "playground.html"))
        whole = inspect.getsource(scheduler) + "\n\nMyScheduler = Scheduler\n"
        values = {
            "ENGINE": "".join(self._inputs(engine=True)),
            "TRAFFIC": "".join(self._inputs(engine=False)),
            "VIEW": VIEW,
            "STARTER": escape(STARTER),
            "WHOLE": escape(whole),
        }
        for name, value in values.items():
            template = template.replace(f"%{name}%", value)
        return [nodes.raw("", template, format="html")]

    def _inputs(self, *, engine: bool) -> Iterator[str]:
        analyzer = ModuleAnalyzer.for_module(PlaygroundSettings.__module__)
        analyzer.analyze()
        hints = typing.get_type_hints(PlaygroundSettings, include_extras=True)
        for field in fields(PlaygroundSettings):
            doc = " ".join(analyzer.attr_docs[(PlaygroundSettings.__name__, field.name)])
            if (field.name in names_of_engine()) is engine:
                yield form_row(field, hints[field.name], doc.strip())


class RunRole(ReferenceRole):
    """``{run}`text <field=value&step=number>```: a link that opens a run in the playground."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the link, or an error if its settings are none."""
        settings = dict(parse_qsl(self.target))
        settings.pop("step", None)
        try:
            PlaygroundSettings(**settings)  # type: ignore[arg-type]  # numbers as text
        except ValueError as error:
            message = self.inliner.reporter.error(f"{self.target}: {error}", line=self.lineno)
            return [], [message]
        root = "../" * self.env.docname.count("/")
        uri = f"{root}playground.html#{self.target}"
        return [nodes.reference("", self.title, internal=True, refuri=uri)], []


def names_of_engine() -> set[str]:
    """Return the names of the fields that set up the engine; the others set up its traffic."""
    names = [field.name for field in fields(PlaygroundSettings)]
    return set(names[: names.index("requests_per_100_steps")])


def form_row(field: "Field[Any]", hint: Any, doc: str) -> str:
    """Return the HTML of a form's row for a field: its name, its meaning and an input."""
    arguments = typing.get_args(hint)
    name = f'name="{field.name}" id="playground-{field.name}"'
    about = f'aria-describedby="playground-{field.name}-about"'
    if hint is bool:
        checked = "checked" if field.default else ""
        control = f'<input type="checkbox" {name} {about} {checked}>'
    elif typing.get_origin(hint) is typing.Literal:
        options = "".join(f"<option>{escape(each)}</option>" for each in arguments)
        control = f"<select {name} {about}>{options}</select>"
    else:
        optional = type(None) in arguments
        info = typing.get_args(arguments[0])[1] if optional else arguments[1]
        bounds = {type(each).__name__.lower(): each for each in info.metadata}
        low, high = bounds["ge"].ge, bounds["le"].le
        value = "" if optional else field.default
        control = (
            f'<input type="number" {name} {about} min="{low}" max="{high}" step="any" '
            f'value="{value}" {"" if optional else "required"} placeholder="none">'
        )
    label = f'<label for="playground-{field.name}"><code>{field.name}</code></label>'
    return (
        f'<p>{label} {control}<small id="playground-{field.name}-about">{escape(doc)}</small></p>'
    )


def fetch(folder: Path) -> bool:
    """Fetch Pyodide and the packages into a folder, unless they are there.

    Returns:
        False if they can't be had: there is no npm, or no network.

    Raises:
        ValueError: what was fetched is not what was pinned.
    """
    complete = folder / "complete"
    wanted = f"{PYODIDE}\n{REQUIREMENTS.read_text(encoding='utf-8')}"
    if complete.is_file() and complete.read_text(encoding="utf-8") == wanted:
        return True
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        fetch_pyodide(folder)
        fetch_packages(folder)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        logger.info("the playground is built without Python: %s", error)
        return False
    except subprocess.CalledProcessError as error:
        if "DO NOT MATCH" in error.stderr:
            raise ValueError(error.stderr) from error
        logger.info("the playground is built without Python: %s", error.stderr)
        return False
    complete.write_text(wanted, encoding="utf-8")
    return True


def fetch_pyodide(folder: Path) -> None:
    """Take the files of Python for browsers from its npm package."""
    with TemporaryDirectory() as scratch:
        run("npm", "pack", f"pyodide@{PYODIDE}", "--pack-destination", scratch)
        archive = Path(scratch) / f"pyodide-{PYODIDE}.tgz"
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if digest != INTEGRITY:
            raise ValueError(f"{archive.name} has the SHA-512 {digest}, not {INTEGRITY}")
        with tarfile.open(archive) as files:
            for name in PYODIDE_FILES:
                member = files.extractfile(f"package/{name}")
                (folder / name).write_bytes(member.read() if member else b"")


def fetch_packages(folder: Path) -> None:
    """Take the packages from pip's index, which verifies their hashes."""
    run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--retries", "1", "--no-deps"),
        *("--require-hashes", "--requirement", str(REQUIREMENTS), "--dest", str(folder)),
        *("--only-binary", ":all:", "--implementation", "cp"),
        *("--python-version", PYTHON, "--platform", PLATFORM),
    )


def run(*command: str) -> None:
    """Run a command that needs the network.

    Raises:
        FileNotFoundError: there is no such program.
        CalledProcessError: it failed.
        TimeoutExpired: it took too long.
    """
    subprocess.run(  # noqa: S603 - the commands of this file
        command, check=True, capture_output=True, encoding="utf-8", timeout=300
    )


def pack_sources(archive: Path) -> None:
    """Pack the sources of both packages, which need no build."""
    with ZipFile(archive, "w", ZIP_DEFLATED) as packed:
        for file in sorted([*SOURCES.rglob("*.py"), *SOURCES.rglob("passages.txt")]):
            packed.write(file, file.relative_to(SOURCES))


def write(app: Sphinx, error: Exception | None) -> None:
    """Write what the page's worker loads into the built site."""
    if error or app.builder.format != "html":
        return
    folder = Path(app.outdir) / FOLDER
    fetched = ROOT / "build" / "playground"
    wheels = []
    if fetch(fetched):
        shutil.copytree(fetched, folder, dirs_exist_ok=True)
        wheels = sorted(wheel.name for wheel in fetched.glob("*.whl"))
    folder.mkdir(exist_ok=True)
    pack_sources(folder / "sources.zip")
    shutil.copy(ROOT / "docs" / "_ext" / "playground-worker.mjs", folder / "worker.mjs")
    (folder / "files.json").write_text(json.dumps({"wheels": wheels}), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive; Sphinx calls this."""
    app.add_directive("playground", PlaygroundDirective)
    app.add_role("run", RunRole())
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
