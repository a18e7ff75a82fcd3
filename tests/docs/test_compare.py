"""The comparisons with other engines are true of this one."""

import re

import pytest

from benchmarks.core_lines import CORE, PACKAGE, count, kernels
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
    core = (file for files in CORE.values() for file in files)
    assert about(r"about ([\d,]+) in the package") == pytest.approx(all_lines(PACKAGE), rel=0.2)
    assert about(r"about ([\d,]+) lines of code for all") == pytest.approx(count(core)[0], rel=0.1)
    assert about(r"and ([\d,]+) of kernels") == pytest.approx(count(kernels())[0], rel=0.15)
    assert about(r"server is ([\d,]+) lines") == pytest.approx(
        all_lines(PACKAGE / "server"), rel=0.15
    )
    assert about(r"simulator ([\d,]+)") == pytest.approx(all_lines(PACKAGE / "sim"), rel=0.15)
    assert about(r"about ([\d,]+) lines of them") == pytest.approx(
        all_lines(ROOT / "tests"), rel=0.25
    )
