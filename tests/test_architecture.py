"""The map matches the country: what ARCHITECTURE.md names exists where it says."""

import ast
import re
import subprocess
import sys
import tomllib

import pytest

from tests.markdown import ROOT, broken_links, read

SOURCES = ROOT / "src"
PACKAGE = SOURCES / "minimal_vllm"
LAB = SOURCES / "minimal_vllm_lab"
TEXT = read("ARCHITECTURE.md")
FILE = r"(?:minimal_vllm_lab/)?[\w/]+\.py"
BENEATH = {
    "beam_search",
    "settings",
    "demo",
    "formats",
    "garbage",
    "signals",
    "outputs",
    "plugin",
    "sampling_params",
    "version",
}
"""What lies beneath all rooms, and is named in the text below their table."""
FOR_SCRIPTS = {
    "distributed",
    "engine_args",
    "inputs",
    "llm_engine",
    "lora",
    "tokenizers",
    "utils",
    "vllm_arguments",
}
"""Names of vLLM's, at vLLM's addresses, which the page has in a sentence too."""


def section(title):
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(title):
    """The cells of a section's tables, without their heads."""
    bodies = re.findall(r"^\|---.*\n((?:\|.*\n)+)", section(title) + "\n", re.M)
    lines = "".join(bodies).splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def find(name):
    """The file or folder of a name on the page, or None."""
    if name.startswith("tests/"):
        return ROOT / name if (ROOT / name).exists() else None
    folders = [PACKAGE, SOURCES]
    return next((folder / name for folder in folders if (folder / name).exists()), None)


def defined_names(path):
    """What a module defines: ``function``, ``Class``, ``Class.method``, ``CONSTANT``."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{each.name}" for each in node.body if hasattr(each, "name"))
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def test_every_link_resolves():
    assert broken_links("ARCHITECTURE.md") == []


def test_every_file_that_is_named_exists():
    names = set(re.findall(rf"`({FILE})`", TEXT)) | set(re.findall(r"  ([\w/]+\.py)\b", TEXT))
    assert len(names) > 60
    assert [name for name in names if find(name) is None and name != "my_file.py"] == []


PLACES = sorted(set(re.findall(rf"`([\w.]+)` in\s`({FILE})`", TEXT)))


@pytest.mark.parametrize(("name", "file"), PLACES)
def test_a_name_is_defined_in_the_file_that_is_named_with_it(name, file):
    assert name in defined_names(find(file))


def test_every_row_of_the_index_leads_somewhere():
    assert len(rows("Where to find it")) > 20
    assert [row for row in rows("Where to find it") if " in `" not in row[1]] == []


def test_the_path_of_a_request_leads_through_functions_that_exist():
    defined = {name for path in PACKAGE.rglob("*.py") for name in defined_names(path)}
    methods = re.findall(r"\b[A-Z]\w+\.\w+", section("The path of a request"))
    assert len(methods) > 15
    assert [name for name in methods if name not in defined] == []


def test_each_function_on_the_path_of_a_request_is_in_the_file_beside_it():
    steps = re.findall(r"([A-Z]\w+\.\w+).*?  ([\w/]+\.py)", section("The path of a request"))
    assert len(steps) > 12
    for name, file in steps:
        if not file.startswith("attention/tiled"):  # has the fastest class of an interface
            assert name in defined_names(find(file))


def layers(contract_id):
    """The layers of an import contract, bottom first, each with all rooms of that height."""
    settings = tomllib.loads(read("pyproject.toml"))["tool"]["importlinter"]
    (contract,) = (each for each in settings["contracts"] if each["id"] == contract_id)
    return [set(layer.split(" : ")) for layer in reversed(contract["layers"])]


@pytest.mark.parametrize(
    ("contract", "package", "prefix"),
    [("rooms", PACKAGE, ""), ("lab-rooms", LAB, "minimal_vllm_lab/")],
)
def test_rooms_are_those_of_the_import_contract_in_its_order(contract, package, prefix):
    listed = [row[0].strip("`") for row in rows("The rooms")]
    own = [name for name in listed if name.startswith("minimal_vllm_lab/") == bool(prefix)]
    rooms = [name.removeprefix(prefix).removesuffix(".py").strip("/") for name in own]
    assert all((package / name.removeprefix(prefix)).exists() for name in own)
    height = {room: h for h, layer in enumerate(layers(contract)) for room in layer}
    assert set(rooms) | (set() if prefix else BENEATH | FOR_SCRIPTS | {"__main__"}) == height.keys()
    heights = [height[room] for room in rooms]
    assert heights == sorted(heights)


def test_no_room_is_left_out():
    listed = {row[0].strip("`/").removeprefix("minimal_vllm_lab/") for row in rows("The rooms")}
    for package in (PACKAGE, LAB):
        folders = {path.parent.name for path in package.glob("*/__init__.py")}
        assert folders - listed - BENEATH - FOR_SCRIPTS == set()


ORDERS = [
    (path.parent, name)
    for path in sorted(SOURCES.glob("*/*/__init__.py"))
    for name in re.findall(r"``(\w+)``", path.read_text("utf-8").partition("Read in this order")[2])
]


@pytest.mark.parametrize(("room", "name"), ORDERS, ids=lambda part: getattr(part, "name", part))
def test_a_reading_order_names_files_of_its_room(room, name):
    assert (room / f"{name}.py").is_file() or (room / name).is_dir()


TOUR = re.findall(rf"^\| `({FILE})`", section("A tour for one evening"), re.M)


def test_the_tour_is_as_short_as_the_page_says():
    most = re.search(r"at most ([\d,]+) lines", section("A tour for one evening"))[1]
    lines = sum(len(find(file).read_text("utf-8").splitlines()) for file in TOUR)
    assert len(TOUR) == len(set(TOUR)) > 10
    assert lines <= int(most.replace(",", ""))


def imports(path):
    """The modules of the engine that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith(("minimal_vllm", "triton"))}


@pytest.mark.parametrize("file", TOUR)
def test_the_tour_needs_no_gpu_no_server_and_no_laboratory(file):
    besides = r"triton|\.kernels\b|_triton|\.(server|cli)\b|minimal_vllm_lab|\.runner\.cuda"
    assert [name for name in imports(find(file)) if re.search(besides, name)] == []


def test_up_to_the_batch_there_is_no_torch():
    modules = "import minimal_vllm, minimal_vllm.step.batch, minimal_vllm.cli.main"
    program = f"{modules}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
