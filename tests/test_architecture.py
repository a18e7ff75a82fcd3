"""The map shows the country: whatever ARCHITECTURE.md names is there, and nothing is left out."""

import ast
import re
import subprocess
import sys

import pytest

from tests.markdown import ROOT, broken_links, read

PACKAGE = ROOT / "src" / "minimal_vllm"
TEXT = read("ARCHITECTURE.md")


def section(title):
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(title):
    """The cells of a section's table, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def names_in(cell):
    return re.findall(r"`([^`]+)`", cell)


def count_lines(path):
    files = [path] if path.is_file() else path.glob("*.py")
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


COUNTED = [
    *((row[0].strip("`"), int(row[1])) for row in rows("The tour of an evening")),
    *((row[0].strip("`"), int(row[1])) for row in rows("The rooms")),
]


def test_every_link_resolves():
    assert broken_links("ARCHITECTURE.md") == []


@pytest.mark.parametrize(("name", "lines"), COUNTED)
def test_line_counts_are_near_the_truth(name, lines):
    assert (PACKAGE / name).exists()
    assert count_lines(PACKAGE / name) == pytest.approx(lines, rel=0.15, abs=10)


def test_every_source_file_stands_in_its_room():
    named = {
        (PACKAGE / row[0].strip("`") / file).resolve()
        for row in rows("The rooms")
        for file in names_in(row[3])
    }
    inner_inits = {path.resolve() for path in PACKAGE.rglob("*/__init__.py")}
    sources = {path.resolve() for path in PACKAGE.rglob("*.py")}
    assert sources - inner_inits == named - inner_inits


def defined_names(path):
    """What a module defines: ``function``, ``Class``, ``Class.method``, ``CONSTANT``."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{each.name}" for each in node.body if hasattr(each, "name"))
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


PLACES = [
    place
    for row in rows("I want to find …")
    for place in re.findall(r"`([\w.]+)` in `([\w/.]+)`", row[1])
]


@pytest.mark.parametrize(("name", "file"), PLACES)
def test_what_you_want_to_find_is_where_the_table_says(name, file):
    assert name in defined_names(PACKAGE / file)


def test_every_row_of_the_table_leads_somewhere():
    assert [row for row in rows("I want to find …") if " in `" not in row[1]] == []


def test_the_way_of_a_request_leads_through_functions_that_exist():
    defined = {name for path in PACKAGE.rglob("*.py") for name in defined_names(path)}
    methods = re.findall(r"\b[A-Z]\w+\.\w+", section("The way of a request"))
    assert len(methods) > 15
    assert [name for name in methods if name not in defined] == []


def test_up_to_the_batch_there_is_no_torch():
    imports = "import minimal_vllm, minimal_vllm.step.batch, minimal_vllm.cli.main"
    program = f"{imports}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
