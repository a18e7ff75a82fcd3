"""The comparisons with other engines are true of this one."""

import re

import pytest

from benchmarks.shape import PACKAGE, SOURCES
from tests.markdown import ROOT, read
from tests.test_architecture import defined_names

FROM_VLLM, COMPARISON = read("docs/compare/from-vllm.md"), read("docs/compare/comparison.md")
OURS = [row.split("|")[2] for row in re.findall(r"^\|.*\|$", FROM_VLLM, re.M)[2:]]


@pytest.mark.parametrize("file", sorted(set(re.findall(r"`([\w/]+\.py)`", "".join(OURS)))))
def test_a_file_that_is_set_beside_one_of_vllm_exists(file):
    assert (PACKAGE / file).is_file()


@pytest.mark.parametrize(
    ("name", "file"), re.findall(r"`([\w.]+)` in `([\w/.]+)`", "\n".join(OURS))
)
def test_a_name_that_is_set_beside_one_of_vllm_is_defined_there(name, file):
    assert name in defined_names(PACKAGE / file)


def about(pattern):
    """The number that the page gives at a place, in lines."""
    return int(re.search(pattern, COMPARISON)[1].replace(",", ""))


def all_lines(folder):
    return sum(len(path.read_text("utf-8").splitlines()) for path in folder.rglob("*.py"))


def test_our_sizes_are_near_the_truth():
    assert about(r"about ([\d,]+) in both packages") == pytest.approx(all_lines(SOURCES), rel=0.2)
    assert about(r"server is ([\d,]+) lines") == pytest.approx(
        all_lines(PACKAGE / "server"), rel=0.15
    )
    assert about(r"simulator ([\d,]+)") == pytest.approx(
        all_lines(SOURCES / "minimal_vllm_lab" / "sim"), rel=0.15
    )
    assert about(r"about ([\d,]+) lines of them") == pytest.approx(
        all_lines(ROOT / "tests"), rel=0.25
    )
