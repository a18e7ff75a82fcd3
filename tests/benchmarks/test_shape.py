"""The code keeps its shape, and the documents tell its size as it is."""

import re

import pytest

from benchmarks.shape import (
    MAX_FILE_LINES,
    MAX_FUNCTION_LINES,
    MAX_KERNEL_LINES,
    MAX_TOUR_LINES,
    Place,
    code_lines,
    imported_by_llm,
    is_kernel,
    longest_files,
    longest_functions,
    size_of,
    tour,
)
from tests.markdown import read


@pytest.mark.parametrize(
    ("kernels", "most"), [(False, MAX_FUNCTION_LINES), (True, MAX_KERNEL_LINES)]
)
def test_no_function_is_too_long_to_be_read_at_once(kernels, most):
    places = longest_functions(kernels=kernels)
    assert len(places) > 20
    assert [place for place in places if place.lines > most] == []


def test_no_file_is_too_long():
    assert [place for place in longest_files() if place.lines > MAX_FILE_LINES] == []


def test_the_tour_fits_into_an_evening():
    assert len(tour()) > 10
    assert size_of(tour()).lines <= MAX_TOUR_LINES


def test_longest_comes_first():
    assert Place(3, "a") > Place(2, "b")
    assert longest_files()[0].lines >= longest_files()[-1].lines


@pytest.fixture(scope="module")
def imported():
    pytest.importorskip("triton", reason="the documents count the GPU's files too")
    return imported_by_llm()


def test_all_of_a_gpus_engine_is_counted(imported):
    names = {file.name for file in imported}
    assert {"scheduler.py", "graphs.py", "triton_modules.py", "decode.py"} <= names
    assert not {file.name for file in imported} & {"app.py", "serve.py", "view.py"}


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", "docs/compare/comparison.md"])
def test_the_documents_tell_what_llm_imports(page, imported):
    text = " ".join(read(page).split())
    found = re.search(r"`LLM\(\)` imports ([\d,]+) lines of code, ([\d,]+) of them kernels", text)
    assert found, page
    code, kernels = (int(number.replace(",", "")) for number in found.groups())
    assert code == pytest.approx(size_of(imported).code, rel=0.02)
    assert kernels == pytest.approx(size_of(filter(is_kernel, imported)).code, rel=0.02)


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("a = 1\n\n\nb = 2  # more\n", 2),
        ("# nothing\n", 0),
        ('def f():\n    """One.\n\n    Two.\n    """\n    return 1\n', 2),
        ('a = """1\n2\n"""\n', 3),
        ("f(\n    1,\n\n    2,\n)\n", 4),
    ],
)
def test_a_line_of_code_is_one_that_holds_code(source, lines):
    assert code_lines(source) == lines
