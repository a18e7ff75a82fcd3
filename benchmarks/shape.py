"""Size and shape of the code in numbers.

python -m benchmarks.shape

Prints how much code ``LLM()`` imports, with kernels counted separately; the longest functions and
files; and the length of the one-evening tour in ``ARCHITECTURE.md``.
``tests/benchmarks/test_shape.py`` enforces the limits, and compares the documents with these
numbers.

A line of code is one that holds code: not a blank line, a comment or a docstring.
"""

import argparse
import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src"
PACKAGE = SOURCES / "minimal_vllm"
MAX_FUNCTION_LINES = 60
MAX_KERNEL_LINES = 100
"""Maximum length of a function in a folder ``kernels/``."""
MAX_FILE_LINES = 400
MAX_TOUR_LINES = 2900

LOADS = "import sys, minimal_vllm; minimal_vllm.LLM(); print(*sys.modules, sep='\\n')"
GPU_MODULES = ("minimal_vllm.runner.cuda", "minimal_vllm.model.triton_modules")
"""Modules that only an engine on a GPU imports; they can be imported on any machine with Triton."""


@dataclass(frozen=True)
class Size:
    """Size of some files."""

    files: int
    code: int
    """Number of lines that hold code."""
    lines: int
    """Number of all lines."""


@dataclass(frozen=True, order=True)
class Place:
    """Function or file, and its length in lines."""

    lines: int
    name: str


def code_lines(source: str) -> int:
    """Count the lines of a Python program that hold code."""
    held: set[int] = set()
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in blank and token.type != tokenize.ENDMARKER:
            held.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # docstrings
            held.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(held)


def size_of(files: Iterable[Path]) -> Size:
    """Measure some files."""
    sources = [file.read_text(encoding="utf-8") for file in files]
    return Size(
        files=len(sources),
        code=sum(map(code_lines, sources)),
        lines=sum(len(source.splitlines()) for source in sources),
    )


def imported_by_llm() -> list[Path]:
    """Return the files of the engine that ``LLM()`` imports, on a CPU or on a GPU.

    An engine is built in a separate process. On a machine with Triton, the process also imports the
    modules that only an engine on a GPU needs.
    """
    program = (
        f"{LOADS}\n"
        if not _has_triton()
        else (
            f"import importlib\nfor name in {GPU_MODULES}: importlib.import_module(name)\n{LOADS}\n"
        )
    )
    printed = subprocess.check_output([sys.executable, "-c", program], text=True, cwd=ROOT)
    names = {line for line in printed.splitlines() if line.partition(".")[0] == "minimal_vllm"}
    return sorted(file for file in map(_file_of, names) if file.exists())


def _has_triton() -> bool:
    found = subprocess.run(
        [sys.executable, "-c", "import triton"], capture_output=True, check=False
    )
    return found.returncode == 0


def _file_of(module: str) -> Path:
    path = SOURCES / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def is_kernel(file: Path) -> bool:
    """Return whether a file holds kernels."""
    return file.parent.name == "kernels"


def kernels() -> tuple[str, ...]:
    """Return the engine's files that hold kernels, relative to the package."""
    return tuple(
        path.relative_to(PACKAGE).as_posix() for path in sorted(PACKAGE.glob("*/kernels/*.py"))
    )


def python_files() -> list[Path]:
    """Return all Python files of both packages."""
    return sorted(SOURCES.rglob("*.py"))


def functions(file: Path) -> Iterator[Place]:
    """Yield the functions and methods of a file, with their lengths."""
    name = file.relative_to(SOURCES).as_posix()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Place((node.end_lineno or node.lineno) - node.lineno + 1, f"{name}:{node.name}")


def longest_functions(*, kernels: bool) -> list[Place]:
    """Return the functions of files with or without kernels, the longest first."""
    files = [file for file in python_files() if is_kernel(file) is kernels]
    return sorted((place for file in files for place in functions(file)), reverse=True)


def longest_files() -> list[Place]:
    """Return all files, the longest first."""
    sizes = [(size_of([file]).lines, file.relative_to(SOURCES)) for file in python_files()]
    return sorted((Place(lines, path.as_posix()) for lines, path in sizes), reverse=True)


def tour() -> list[Path]:
    """Return the files of the one-evening tour in ``ARCHITECTURE.md``, in order."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = text.partition("## A tour for one evening")[2].partition("\n## ")[0]
    names = re.findall(r"^\| `([\w/]+\.py)`", section, re.M)
    return [PACKAGE / name for name in names]


def main() -> None:
    """Print the numbers."""
    form = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=form).parse_args()
    imported = imported_by_llm()
    rows = {
        "LLM() imports": size_of(imported),
        "  of these, kernels": size_of(filter(is_kernel, imported)),
        "minimal_vllm": size_of((SOURCES / "minimal_vllm").rglob("*.py")),
        "minimal_vllm_lab": size_of((SOURCES / "minimal_vllm_lab").rglob("*.py")),
        "the one-evening tour": size_of(tour()),
    }
    print(f"{'':20} files   code  all lines")
    for name, size in rows.items():
        print(f"{name:20} {size.files:5} {size.code:6,} {size.lines:10,}")
    print(f"the tour may have {MAX_TOUR_LINES:,} lines")
    longest = {
        f"longest function (at most {MAX_FUNCTION_LINES})": longest_functions(kernels=False)[0],
        f"longest in kernels (at most {MAX_KERNEL_LINES})": longest_functions(kernels=True)[0],
        f"longest file (at most {MAX_FILE_LINES})": longest_files()[0],
    }
    for what, place in longest.items():
        print(f"{what:36} {place.lines:4}  {place.name}")


if __name__ == "__main__":
    main()
