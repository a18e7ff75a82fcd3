"""The chapters of the course have one form, and their pictures are what their scripts draw."""

import re
import subprocess
import sys

import pytest

from tests.markdown import ROOT, code_blocks, read

CHAPTERS = [
    path.relative_to(ROOT).as_posix()
    for path in sorted(ROOT.glob("docs/course/*.md"))
    if not path.name.startswith("00")
]
FORM = [
    "The problem, measured",
    "The idea",
    "The code",
    "What it was worth",
    "What vLLM and others do beyond this",
    "Exercises",
]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_has_the_form_of_all(chapter):
    assert re.findall(r"^## (.*)$", read(chapter), re.M)[: len(FORM)] == FORM


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_includes_code_and_pastes_none(chapter):
    text = read(chapter)
    assert "{literalinclude}" in text
    assert code_blocks(text, "python") == []


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_measures_its_problem_and_has_exercises_with_answers(chapter):
    sections = dict(re.findall(r"^## (.*)\n((?:(?!## ).*\n?)*)", read(chapter), re.M))
    assert "```console\n$ " in sections["The problem, measured"]
    assert "minimal-vllm learn start " in sections["Exercises"]
    assert "<summary>Answers</summary>" in sections["Exercises"]


def test_the_roofline_is_what_its_script_draws_from_the_numbers():
    command = [sys.executable, "docs/course/code/roofline.py"]
    drawn = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    assert read("docs/images/roofline.svg") == drawn.stdout
