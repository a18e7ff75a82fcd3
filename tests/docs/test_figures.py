"""The figures are on pages, fit into a phone's width, and say what they show to those who hear."""

import re
import sys
from xml.etree import ElementTree as ET

import pytest

from minimal_vllm import LLM, SamplingParams
from tests.lab.view.browser import new_page
from tests.markdown import ROOT, read

sys.path.insert(0, str(ROOT / "docs" / "_ext"))
from figures import FIGURES, WIDTH
from figures.alone import FOLDER, alone
from figures.model import CANDIDATES
from figures.steps import preempting_plans

SIZES = {"small": 11, "tiny": 10}
"""Sizes of letters in units, where they are not 12."""


def drawn(name):
    return ET.fromstring(FIGURES[name].svg(name))


def texts_of(name):
    return [text.text for text in drawn(name).iter("text")]


def places(shape):
    """The corners of a shape that isn't a text."""
    if shape.tag == "rect":
        x, y, width, height = (float(shape.get(side)) for side in ("x", "y", "width", "height"))
        return [(x, y), (x + width, y + height)]
    pairs = shape.get("points", "").split()
    return [tuple(map(float, pair.split(","))) for pair in pairs]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_a_title_and_a_description(name):
    svg = drawn(name).find("svg")
    assert svg.get("role") == "img"
    labels = svg.get("aria-labelledby").split()
    texts = {each.get("id"): each.text for each in svg if each.tag in ("title", "desc")}
    assert [label in texts for label in labels] == [True, True]
    assert len(texts[f"{name}-description"]) > 80


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_lies_within_its_frame(name):
    figure = drawn(name)
    height = float(figure.find("svg").get("viewBox").split()[3])
    for shape in figure.iter():
        if shape.tag in ("rect", "polyline"):
            for x, y in places(shape):
                assert 0 <= x <= WIDTH, ET.tostring(shape)
                assert 0 <= y <= height, ET.tostring(shape)
    for text in figure.iter("text"):
        kinds = text.get("class").split()
        size = min(SIZES.get(kind, 12) for kind in ["", *kinds])
        x, length = float(text.get("x")), len(text.text) * size * 0.52
        left = x - length if "end" in kinds else x - length / 2 if "middle" in kinds else x
        if "turned" not in kinds:
            assert -4 <= left <= left + length <= WIDTH + 4, text.text
        assert float(text.get("y")) <= height


OVERLAPS = """
    () => [...document.querySelectorAll("svg")].flatMap(svg => {
        const inside = svg.getBoundingClientRect();
        const texts = [...svg.querySelectorAll("text")].map(
            text => [text.textContent, text.getBoundingClientRect()]);
        const cut = texts.filter(([, at]) =>
            at.left < inside.left - 1 || at.right > inside.right + 1
            || at.top < inside.top - 2 || at.bottom > inside.bottom + 1);
        const hidden = texts.filter(([, a], index) => texts.slice(index + 1).some(([, b]) =>
            Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
            && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4));
        return [...cut, ...hidden].map(([text]) => text);
    })
"""
"""JavaScript that lists the texts that leave their figure, or lie on another one."""


@pytest.mark.browser
def test_no_text_of_a_figure_is_cut_off_or_lies_on_another(chromium):
    style = f"<style>{read('docs/_static/site.css')} body {{ --font-stack: sans-serif }}</style>"
    figures = "".join(FIGURES[name].svg(name) for name in FIGURES)
    screen = new_page(chromium, viewport={"width": 390, "height": 844})
    screen.set_content(f"{style}<body>{figures}")
    assert screen.evaluate(OVERLAPS) == []
    screen.close()


def test_each_figure_is_in_a_chapter_and_a_handout_and_each_color_in_the_style_sheet():
    for pages in ("docs/course/*.md", "docs/handouts.md"):
        text = "".join(path.read_text("utf-8") for path in ROOT.glob(pages))
        shown = re.findall(r"^!\[(.+)\]\((?:\.\./)?images/figures/(\S+)\.svg\)$", text, re.M)
        assert {name: title for title, name in shown} == {
            name: figure.title for name, figure in FIGURES.items()
        }
    kinds = {
        kind
        for name in FIGURES
        for shape in drawn(name).iter()
        if shape.tag in ("rect", "text", "polyline")
        for kind in shape.get("class").split()
    }
    styled = set(re.findall(r"\.([a-z-]+)", read("docs/_static/site.css")))
    on_pale = ("on-pale-", "on-frame", "on-empty", "on-free")  # text there has the page's color
    unstyled = {kind for kind in kinds - styled if not kind.startswith(on_pale)}
    assert unstyled == set()


def test_each_handout_asks_three_questions_and_names_its_chapter():
    sheets = read("docs/handouts.md").split("\n## ")[1:]
    assert len(sheets) == len(FIGURES)
    for sheet in sheets:
        assert re.findall(r"^(\d)\. ", sheet, re.M) == ["1", "2", "3"], sheet
        chapter, figure = re.search(
            r"\(course/(.*?\.md)\).*\(images/(.*?svg)\)", sheet, re.S
        ).groups()
        assert f"(../images/{figure})\n" in read(f"docs/course/{chapter}"), sheet


def test_each_question_of_the_handouts_has_an_answer():
    questions, answers = (read(f"docs/{name}.md") for name in ("handouts", "answers"))
    heading = r"^## (.*)$"
    assert re.findall(heading, answers, re.M) == re.findall(heading, questions, re.M)
    for sheet in answers.split("\n## ")[1:]:
        assert re.findall(r"^(\d)\. ", sheet, re.M) == ["1", "2", "3"], sheet


@pytest.mark.parametrize("name", FIGURES)
def test_the_file_of_a_figure_is_up_to_date(name):
    assert read(f"docs/images/figures/{name}.svg") == alone(name), "run docs/_ext/figures/alone.py"


def test_there_are_no_other_files_of_figures():
    assert {path.stem for path in FOLDER.iterdir()} == set(FIGURES)


def test_the_candidates_that_the_sampler_chooses_from_are_the_models():
    llm = LLM(dtype="float32", device="cpu", max_logprobs=len(CANDIDATES))
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=len(CANDIDATES))
    (output,) = llm.generate("The old captain looked at the sea, and", params, use_tqdm=False)
    (logprobs,) = output.outputs[0].logprobs
    found = {each.decoded_token.strip(): each.logprob for each in logprobs.values()}
    assert found == pytest.approx(CANDIDATES, abs=0.002)


def test_the_numbers_of_a_figure_are_those_of_its_chapter():
    names = [text for text in texts_of("hash-chain") if re.fullmatch("[0-9a-f]{6}", text)]
    assert len(names) == 10
    assert all(name in read("docs/course/06-prefix-caching.md") for name in names)
    plans = enumerate(preempting_plans(), start=1)
    lost = [(step, *preempted) for step, (_, preempted, _) in plans if preempted]
    assert lost == [(6, "C"), (12, "B"), (25, "C")]
    steps = [text for text in texts_of("batches") if text.endswith("steps")]
    assert len(steps) == 2
    assert all(each in read("docs/course/07-continuous-batching.md") for each in steps)
    capacity = read("docs/course/14-capacity.md")
    assert {"193", "311"} <= set(texts_of("capacity")) & set(re.findall(r"\d+", capacity))
