"""The chapters of the course have one form, and their pictures are what their scripts draw."""

import re
import runpy
import subprocess
import sys

import pytest

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.demo import DEMO_MODEL_DIR
from minimal_vllm_lab.learn.exercises import EXERCISES
from tests.markdown import ROOT, code_blocks, read

CHAPTERS = [
    path.relative_to(ROOT).as_posix()
    for path in sorted(ROOT.glob("docs/course/*.md"))
    if not path.name.startswith("00")
]
ELSEWHERE = {"gate_proj", "up_proj", "build_batch"}
"""What is said to be in a checkpoint, or in another chapter's code."""
PHONE = 84
"""Columns of the smallest letters of the style sheet that a phone of 390 pixels can show."""
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
def test_a_drawing_or_an_output_in_letters_fits_into_a_phones_width(chapter):
    too_wide = [
        line
        for language in ("text", "console")
        for block in code_blocks(read(chapter), language)
        for line in block.splitlines()
        if len(line) > PHONE
    ]
    assert too_wide == []


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_asks_questions_and_answers_them(chapter):
    exercises = read(chapter).partition("## Exercises\n")[2]
    questions, _, answers = exercises.partition("<summary>Answers</summary>")
    numbers = [re.findall(r"^(\d)\. ", part, re.M) for part in (questions, answers)]
    assert numbers[0]
    assert numbers[0] == numbers[1]


def numbered_chapters():
    """The text of each chapter, by its number; both pages of chapter 0 together."""
    texts = dict.fromkeys(range(21), "")
    for path in sorted(ROOT.glob("docs/course/*.md")):
        texts[int(path.name[:2])] += path.read_text("utf-8")
    return texts


def glossary():
    """The entries of the glossary: a term, and the numbers of the chapters that explain it."""
    for term, text in re.findall(
        r"^- \*\*(.*?)\*\*: (.*?)(?=^- |\Z)", read("docs/glossary.md"), re.M | re.S
    ):
        found = re.findall(r"\(([\d, ]+)\)", text)
        yield term, [int(number) for numbers in found for number in numbers.split(",")]


def test_the_glossary_is_in_order_and_has_a_term_of_each_chapter():
    entries = dict(glossary())
    assert list(entries) == sorted(entries, key=str.lower)
    assert {number for numbers in entries.values() for number in numbers} == set(range(21))


@pytest.mark.parametrize(("term", "numbers"), list(glossary()))
def test_a_term_is_in_the_chapters_that_the_glossary_names(term, numbers):
    names = [name.lower() for name in re.split(r", | \(|\)", term) if name]
    chapters = numbered_chapters()
    for number in numbers:
        text = " ".join(chapters[number].lower().split())
        assert any(name in text for name in names), number


def chapters_in(text):
    """The numbers of a list such as "1 to 6, 11 and 12"."""
    numbers = set()
    for first, last in re.findall(r"(\d+)(?: to (\d+))?", text):
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def needed_chapters():
    """The chapters that each chapter says must be read before it; not those that only help."""
    for number, text in numbered_chapters().items():
        before = re.search(
            r"^\*Read before: (.*?)(?:Helpful|For the experts|\*$)", text, re.M | re.S
        )
        links = re.findall(r"\((\d\d)-[a-z-]+\.md\)", before[1]) if before else []
        yield number, {int(link) for link in links} - {number}


@pytest.mark.parametrize("page", ["docs/teach.md", "docs/course/00-how-it-works.md"])
def test_a_list_of_chapters_has_what_its_chapters_need_and_the_exercises_of_no_others(page):
    needed = dict(needed_chapters())
    chapter_of = {name: int(each.chapter[:2]) for name, each in EXERCISES.items()}
    table = read(page).partition("| you have |")[2].partition("\n\n")[0]
    rows = [row.split("|")[2:4] for row in table.splitlines()[2:]]
    assert len(rows) >= 3
    for chapters, exercises in rows:
        listed = chapters_in(chapters) or set(range(21))
        missing = {number for each in listed for number in needed[each]} - listed
        assert missing == set(), chapters
        asked = {chapter_of[name] for name in re.findall(r"`([a-z-]+)`", exercises)}
        assert asked <= listed, exercises


def test_the_teachers_page_has_the_points_and_the_hours_of_each_exercise():
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d) \| (\d) \|$", read("docs/teach.md"), re.M)
    assert {name: int(points) for name, points, _ in rows} == {
        name: exercise.points for name, exercise in EXERCISES.items()
    }


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
