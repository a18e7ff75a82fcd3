"""The figures are on pages, fit into a phone's width, and say what they show to those who hear."""

import re
import sys
from xml.etree import ElementTree as ET

import pytest

from tests.markdown import ROOT, read

sys.path.insert(0, str(ROOT / "docs" / "_ext"))
from drawings import DRAWINGS, WIDTH

CHARACTER = 6.2
"""Mean width of a character in units."""


def drawn(name):
    drawing, height = DRAWINGS[name]()
    return ET.fromstring(drawing.svg(name, height)), height


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_has_a_title_and_a_description(name):
    svg = drawn(name)[0].find("svg")
    assert svg.get("role") == "img"
    labels = svg.get("aria-labelledby").split()
    texts = {each.get("id"): each.text for each in svg if each.tag in ("title", "desc")}
    assert [label in texts for label in labels] == [True, True]
    assert len(texts[f"{name}-description"]) > 80


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_lies_within_its_frame(name):
    figure, height = drawn(name)
    for box in figure.iter("rect"):
        x, y, width, own = (float(box.get(side)) for side in ("x", "y", "width", "height"))
        assert 0 <= x <= x + width <= WIDTH
        assert 0 <= y <= y + own <= height
    for text in figure.iter("text"):
        x, length = float(text.get("x")), len(text.text) * CHARACTER
        kinds = text.get("class").split()
        left = x - length if "end" in kinds else x - length / 2 if "middle" in kinds else x
        if "turned" not in kinds:
            assert -4 <= left <= left + length <= WIDTH + 4, text.text
        assert float(text.get("y")) <= height


def test_each_figure_is_on_a_page_and_each_color_in_the_style_sheet():
    pages = "".join(path.read_text("utf-8") for path in ROOT.glob("docs/**/*.md"))
    assert set(re.findall(r"^```{drawing} (\S+)", pages, re.M)) == set(DRAWINGS)
    kinds = {
        kind
        for name in DRAWINGS
        for shape in drawn(name)[0].iter()
        if shape.tag in ("rect", "text", "polyline")
        for kind in shape.get("class").split()
    }
    styled = set(re.findall(r"\.([a-z-]+)", read("docs/_static/site.css")))
    assert kinds - styled - {"on-empty", "on-frame"} == set()
