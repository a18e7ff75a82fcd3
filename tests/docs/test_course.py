"""The chapters of the course have one form, and their pictures are what their scripts draw."""

import re
import runpy
import subprocess
import sys

import pytest

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.demo import DEMO_MODEL_DIR
from tests.markdown import ROOT, code_blocks, read

CHAPTERS = [
    path.relative_to(ROOT).as_posix()
    for path in sorted(ROOT.glob("docs/course/*.md"))
    if not path.name.startswith("00")
]
ELSEWHERE = {"gate_proj", "up_proj", "build_batch"}
"""What is said to be in a checkpoint, or in another chapter's code."""
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
def test_what_is_to_be_noticed_in_code_is_in_the_code_that_is_shown(chapter):
    text = read(chapter)
    files = set(re.findall(r"{literalinclude} (\S+)", text))
    shown = [(ROOT / chapter).parent.joinpath(file).read_text("utf-8") for file in files]
    prose = re.sub(r"^```.*?^```$", "<code>", text, flags=re.DOTALL | re.MULTILINE)
    notices = re.findall(r"^\*Notice:\*.*?(?=<code>|^#)", prose, re.DOTALL | re.MULTILINE)
    names = set(re.findall(r"`(\w+_\w+)`", "".join(notices))) - ELSEWHERE
    assert names - set(re.findall(r"\w+", "\n".join(shown))) == set()


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_asks_questions_and_answers_them(chapter):
    exercises = read(chapter).partition("## Exercises\n")[2]
    questions, _, answers = exercises.partition("<summary>Answers</summary>")
    numbers = [re.findall(r"^(\d)\. ", part, re.M) for part in (questions, answers)]
    assert numbers[0]
    assert numbers[0] == numbers[1]


def test_the_roofline_is_what_its_script_draws_from_the_numbers():
    command = [sys.executable, "docs/course/code/roofline.py"]
    drawn = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    assert read("docs/images/roofline.svg") == drawn.stdout


def test_the_transformer_of_chapter_0_writes_what_the_engine_writes():
    script = runpy.run_path(str(ROOT / "docs/course/code/transformer.py"))
    prompt = [21, 500, 77, 4000, 3]
    whole = script["generate"](script["Transformer"](DEMO_MODEL_DIR), prompt, 12)
    llm = LLM(device="cpu", dtype="float32", attention_backend="reference")
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    (output,) = llm.generate({"prompt_token_ids": prompt}, params)
    assert whole == [*prompt, *output.outputs[0].token_ids]


def test_the_transformer_of_chapter_0_is_short():
    assert len(read("docs/course/code/transformer.py").splitlines()) <= 110
