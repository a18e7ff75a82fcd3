"""The site can be built, strictly: links lead somewhere, pages are listed, notebooks run."""

from html.parser import HTMLParser
from urllib.parse import parse_qsl, unquote

import nbformat
import pytest

from minimal_vllm_lab.view.playground import PlaygroundSettings
from tests.lab.view.browser import new_page
from tests.markdown import ROOT

DOCS = ROOT / "docs"
SOURCES = ("href", "src", "data-src")
"""Attributes that hold addresses."""


class Links(HTMLParser):
    """The addresses that a page links to or loads, and the places in it that can be linked to."""

    def __init__(self, page):
        super().__init__()
        self.targets, self.loaded, self.ids = set(), set(), set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        targets = {attributes[name] for name in SOURCES if attributes.get(name)}
        self.targets |= targets
        if tag != "a":
            self.loaded |= targets


def test_links_lead_to_places_that_exist_and_nothing_is_loaded_from_elsewhere(site):
    pages = {page: Links(page) for page in site.rglob("*.html")}
    assert len(pages) > 100
    broken = []
    for page, links in pages.items():
        for target in links.targets:
            path, _, anchor = unquote(target).partition("#")
            file = (page.parent / path.partition("?")[0]).resolve() if path else page
            if "://" in target or target.startswith(("data:", "mailto:")):
                continue
            if file.name == "playground.html" and "=" in anchor:
                settings = {name: value for name, value in parse_qsl(anchor) if name != "step"}
                PlaygroundSettings(**settings)
            elif not file.exists() or (anchor and anchor not in pages[file].ids):
                broken.append((page.relative_to(site).as_posix(), target))
    assert broken == []
    shown_on_map = pages[site / "start" / "map.html"].targets
    assert "../source/src/minimal_vllm/model/decoder.py.html" in shown_on_map
    assert "../source/src/minimal_vllm_lab/ablate/policies.py.html" in shown_on_map
    listed = pages[site / "reference" / "files.html"].targets
    assert "../source/src/minimal_vllm/model/config.py.html" in listed
    loaded = {each for links in pages.values() for each in links.loaded}
    assert {each for each in loaded if "://" in each} == set()


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_its_screen(site, chromium, width):
    screen = new_page(chromium, viewport={"width": width, "height": 844})
    too_wide = []
    for page in sorted(site.rglob("*.html")):
        if page.relative_to(site).parts[0] not in ("source", "_modules"):
            screen.goto(page.as_uri())
            if screen.evaluate("document.documentElement.scrollWidth > innerWidth"):
                too_wide.append(page.name)
    screen.close()
    assert too_wide == []


SCROLLED = """() => [...document.querySelectorAll("article *")].filter((each) =>
    /auto|scroll/.test(getComputedStyle(each).overflowX)
    && each.clientWidth > 0 && each.scrollWidth > each.clientWidth + 1
).map((each) => each.textContent.trim().slice(0, 60))"""
"""JavaScript that lists the beginnings of what is cut off at the side unless one scrolls it."""


@pytest.mark.browser
def test_no_table_or_block_of_a_chapter_is_wider_than_a_phone(site, chromium):
    screen = new_page(chromium, viewport={"width": 390, "height": 844})
    cut = {}
    for page in sorted(site.glob("course/*.html")):
        screen.goto(page.as_uri())
        cut[page.stem] = screen.evaluate(SCROLLED)
    screen.set_viewport_size({"width": 280, "height": 844})
    assert screen.evaluate(SCROLLED) != []  # it would notice
    screen.close()
    assert len(cut) >= 22
    assert {name: found for name, found in cut.items() if found} == {}


@pytest.mark.browser
def test_a_table_in_cards_shows_its_headings_and_still_is_a_table(site, chromium):
    screen = new_page(chromium, viewport={"width": 390, "height": 844})
    screen.goto((site / "course" / "19-speculation.html").as_uri())
    table = screen.get_by_role("table").filter(has_text="rewrite a function")
    assert table.get_by_role("columnheader").all_text_contents() == [
        *("task", "tokens per step", "guesses right", "time per token")
    ]
    row = table.get_by_role("row").filter(has_text="a story")
    assert row.get_by_role("rowheader").text_content() == "a story"
    right = row.get_by_role("cell").nth(1)
    assert right.text_content() == "33 %"
    shown = "each => getComputedStyle(each, '::before').content"
    assert right.evaluate(shown).startswith('"guesses right"')
    screen.close()


@pytest.mark.browser
@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("preemption", "9. Preemption"),
        ("chunked prefill", "8. Chunked prefill and the token budget"),
        ("max_num_seqs", "minimal_vllm.config.EngineConfig.max_num_seqs"),
    ],
)
def test_what_is_searched_for_is_found_first(site, chromium, words, place):
    screen = new_page(chromium)
    screen.goto((site / "index.html").as_uri())
    screen.fill("input.sidebar-search", words)
    screen.press("input.sidebar-search", "Enter")
    assert screen.locator("#search-results li > a").first.text_content() == place
    screen.close()


@pytest.mark.parametrize("path", sorted(DOCS.glob("notebooks/*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_is_kept_without_what_it_prints(path):
    cells = nbformat.read(path, as_version=4).cells
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []
