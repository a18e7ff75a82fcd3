"""Parts of the reference that are made from the code: dataclasses, commands, metrics, files."""

import ast
import inspect
import re
import types
import typing
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from docutils import nodes
from prometheus_client.parser import text_string_to_metric_families
from pydantic.fields import FieldInfo
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

from minimal_vllm.cli.main import main
from minimal_vllm.server.metrics import Metrics

SOURCES = Path(__file__).parents[2] / "src"
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


class FieldsDirective(SphinxDirective):
    """``{fields} package.module.Class``: the docstring of a dataclass, then each of its fields."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the class's docstring, then name, type, default and docstring of each field."""
        module, _, name = self.arguments[0].rpartition(".")
        owner = getattr(import_module(module), name)
        owner_name = f"{owner.__module__}.{name}"
        analyzer = ModuleAnalyzer.for_module(owner.__module__)
        analyzer.analyze()
        self.env.note_dependency(analyzer.srcname)
        hints = typing.get_type_hints(owner, include_extras=True)
        listed = addnodes.desc(domain="py", objtype="attribute", classes=["py", "attribute"])
        for field in fields(owner):
            doc = analyzer.attr_docs.get((name, field.name))
            if doc is None:
                raise self.error(f"{owner_name}.{field.name} has no docstring")
            listed += self._signature(owner_name, field, type_text(hints[field.name]))
            listed += addnodes.desc_content("", *self.parse_text_to_nodes("\n".join(doc)))
        summary = self.parse_text_to_nodes(inspect.cleandoc(owner.__doc__))
        summary[0]["ids"].append(owner_name)
        self.env.domains.python_domain.note_object(owner_name, "class", owner_name)
        return [*summary, listed]

    def _signature(self, owner: str, field: "Field[Any]", kind: str) -> addnodes.desc_signature:
        full_name = f"{owner}.{field.name}"
        signature: addnodes.desc_signature = addnodes.desc_signature(
            "", "", ids=[full_name], fullname=field.name
        )
        signature += addnodes.desc_name("", field.name)
        signature += addnodes.desc_annotation("", f": {kind}")
        if (default := default_text(field)) is not None:
            signature += addnodes.desc_annotation("", f" = {default}")
        domain = self.env.domains.python_domain
        domain.note_object(full_name, "attribute", full_name, location=signature)
        return signature


def type_text(hint: Any) -> str:
    """Return a type as text: ``int ≥ 1 | None``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is types.NoneType:
        return "None"
    if origin is typing.Annotated:
        limits = [each for info in arguments[1:] for each in _limits(info)]
        return f"{type_text(arguments[0])} {' and '.join(limits)}".strip()
    if origin is typing.Literal:
        return " | ".join(map(repr, arguments))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(type_text, arguments))
    if origin:
        return f"{origin.__name__}[{', '.join(map(type_text, arguments))}]"
    return getattr(hint, "__name__", str(hint))


def _limits(info: Any) -> Iterator[str]:
    for constraint in info.metadata if isinstance(info, FieldInfo) else [info]:
        for name, sign in BOUNDS.items():
            if (bound := getattr(constraint, name, None)) is not None:
                yield f"{sign} {bound}"


def default_text(field: "Field[Any]") -> str | None:
    """Return a field's default as Python code, or None if the field is required."""
    if field.default_factory is not MISSING:
        return repr(field.default_factory())
    return None if field.default is MISSING else repr(field.default)


class HelpRecorder(click.HelpFormatter):
    """Keeps what a command prints for ``--help``: headings, each with names and meanings."""

    def __init__(self) -> None:
        super().__init__()
        self.lists: list[tuple[str, list[tuple[str, str]]]] = []

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Begin a list."""
        self.lists.append((name, []))
        yield

    def write_dl(self, rows: Iterable[tuple[str, str]], *_: Any, **__: Any) -> None:
        """Add to the list."""
        self.lists[-1][1].extend(rows)


class CommandsDirective(SphinxDirective):
    """``{commands}``: each command of ``minimal-vllm``, with everything in its ``--help``."""

    def run(self) -> list[nodes.Node]:
        """Return a section for each command, with a section for each of its subcommands."""
        return [self._section(main, click.Context(main, info_name="minimal-vllm"))]

    def _section(self, command: click.Command, context: click.Context) -> nodes.section:
        path = context.command_path
        section = nodes.section("", nodes.title("", path), ids=[nodes.make_id(path)])
        usage = f"{path} {' '.join(command.collect_usage_pieces(context))}"
        section += nodes.literal_block(usage, usage, language="text")
        for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
            section += _help_paragraph(paragraph)
        recorder = HelpRecorder()
        command.format_options(context, recorder)
        for heading, rows in recorder.lists:
            if heading != "Commands":
                section += nodes.rubric("", heading)
                section += self._options(path, rows)
        for name, inner in getattr(command, "commands", {}).items():
            section += self._section(inner, click.Context(inner, context, info_name=name))
        return section

    def _options(self, path: str, rows: list[tuple[str, str]]) -> addnodes.desc:
        listed = addnodes.desc(domain="std", objtype="option", classes=["options"])
        for names, meaning in rows:
            anchor = nodes.make_id(f"{path} {names.split()[0].rstrip(',')}")
            listed += addnodes.desc_signature("", "", addnodes.desc_name("", names), ids=[anchor])
            listed += addnodes.desc_content("", _help_paragraph(meaning))
        return listed


def _help_paragraph(text: str) -> nodes.paragraph:
    """Return a paragraph of a command's help, in which options are set as code."""
    parts = re.split(r"(--[a-z][\w-]*)", " ".join(text.split()))
    return nodes.paragraph(
        "",
        "",
        *(nodes.literal("", part) if i % 2 else nodes.Text(part) for i, part in enumerate(parts)),
    )


class MetricsDirective(SphinxDirective):
    """``{metrics}``: name, kind, labels and meaning of each metric of the server."""

    def run(self) -> list[nodes.Node]:
        """Return a list of everything that ``GET /metrics`` can return."""
        listed = addnodes.desc(domain="std", objtype="metric", classes=["metric"])
        for family in text_string_to_metric_families(rendered_metrics()):
            # Added by the client library: process metrics exist on some systems only.
            if family.name.startswith("process_") or family.name.endswith("_created"):
                continue
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            suffix = "_total" if family.type == "counter" else ""
            signature: addnodes.desc_signature = addnodes.desc_signature("", "", ids=[family.name])
            signature += addnodes.desc_name("", family.name + suffix)
            signature += addnodes.desc_annotation("", f" {family.type}")
            meaning = family.documentation
            if labels:
                meaning += f" Labels: {', '.join(f'`{label}`' for label in sorted(labels))}."
            listed += signature
            listed += addnodes.desc_content("", *self.parse_text_to_nodes(meaning))
        return [listed]


def rendered_metrics() -> str:
    """Render the metrics of a server after one request, so that all of them have labels."""
    metrics = Metrics("model")
    metrics.describe_cache({"block_size": 16, "num_gpu_blocks": 1})
    metrics.answered("/v1/completions", "POST", 200, 1.0)
    return metrics.text().decode()


class FilesDirective(SphinxDirective):
    """``{files} package``: each file of a package, with the first sentence of its docstring."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return a section for each folder, with a list of its files."""
        package = SOURCES / self.arguments[0]
        files = sorted(package.rglob("*.py"), key=lambda file: (file.parent, file.name))
        folders = dict.fromkeys(file.parent for file in files)
        return [
            self._section(folder, [file for file in files if file.parent == folder])
            for folder in folders
        ]

    def _section(self, folder: Path, files: list[Path]) -> nodes.section:
        name = f"{folder.relative_to(SOURCES).as_posix()}/"
        section = nodes.section("", nodes.title("", name), ids=[nodes.make_id(name)])
        listed = nodes.definition_list()
        for file in files:
            self.env.note_dependency(str(file))
            path = file.relative_to(SOURCES).as_posix()
            term = nodes.term("", "", nodes.literal("", path))
            what = nodes.definition("", *self.parse_text_to_nodes(first_sentence(file)))
            listed += nodes.definition_list_item("", term, what)
        section += listed
        return section


def first_sentence(file: Path) -> str:
    """Return the first sentence of a module's docstring."""
    doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(doc.partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z`])", paragraph)[0]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives; Sphinx calls this."""
    app.add_directive("fields", FieldsDirective)
    app.add_directive("commands", CommandsDirective)
    app.add_directive("metrics", MetricsDirective)
    app.add_directive("files", FilesDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
