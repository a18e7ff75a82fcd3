"""The view's panels in chapters of the course, with runs that were recorded for them."""

import re
import sys
from contextlib import contextmanager

import pytest
from PIL import Image

from tests.lab.view.browser import new_page, page_at, until
from tests.markdown import ROOT

sys.path.insert(0, str(ROOT / "docs" / "_ext"))
from panel_pictures import FOLDER, QUERY, WIDTH
from recorded_panels import PANELS

pytestmark = pytest.mark.browser

SHOWN = {
    path.stem: PANELS[name]
    for path in sorted(ROOT.glob("docs/course/*.md"))
    for name in re.findall(
        r"^!\[.+\]\(\.\./images/panels/(\S+)\.png\)$", path.read_text("utf-8"), re.M
    )
}
"""The panels of each chapter that has some."""
READY = "document.querySelector('figure.engine iframe').contentWindow?.view?.isComplete === true"
STEP = "view.player.state.step"
NAMES = ("pool", "near", "batch", "queue", "numbers")


@contextmanager
def chapter(chromium, address, name, **options):
    """Open a chapter at its panels; yield its page and the frame of the view."""
    shown = page_at(chromium, f"{address}/course/{name}.html", ready="true", **options)
    with shown as page:
        page.locator("figure.engine").scroll_into_view_if_needed()
        until(page, READY)
        frame = page.locator("figure.engine iframe").element_handle().content_frame()
        until(frame, "!view.stale && !view.wordsAreStale")
        yield page, frame


def seen(frame):
    return [name for name in NAMES if frame.locator(f"section.{name}").is_visible()]


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", SHOWN)
def test_a_chapter_shows_the_panels_and_the_step_that_it_names(chromium, address, name, width):
    scheme = "dark" if width == 390 else "light"
    viewport = {"width": width, "height": 844}
    opened = chapter(chromium, address, name, viewport=viewport, color_scheme=scheme)
    with opened as (page, frame):
        assert frame.evaluate(STEP) == SHOWN[name].step
        assert sorted(seen(frame)) == sorted(SHOWN[name].panels)
        assert frame.evaluate("document.documentElement.dataset.theme") == scheme
        for each in (page, frame):
            assert each.evaluate("document.documentElement.scrollWidth <= innerWidth")
        cut = "document.body.scrollHeight - document.documentElement.clientHeight"
        until(frame, f"{cut} <= 1")  # the frame is as tall as what it shows


def test_the_chapters_with_panels_are_those_that_need_them():
    assert [name[:2] for name in SHOWN] == ["03", "06", "07", "08", "09", "15"]


def test_each_panel_is_in_a_chapter():
    assert list(SHOWN.values()) == list(PANELS.values())
    assert {path.stem for path in FOLDER.iterdir()} == set(PANELS)


@pytest.mark.parametrize("name", PANELS)
def test_the_picture_of_panels_is_up_to_date(name):
    with Image.open(FOLDER / f"{name}.png") as picture:
        assert picture.text[QUERY] == PANELS[name].query, "run docs/_ext/panel_pictures.py"
        assert picture.width == 2 * WIDTH


def test_the_bar_and_the_keys_go_through_the_run(chromium, address):
    with chapter(chromium, address, "09-preemption") as (page, frame):
        first = frame.evaluate(STEP)
        page.focus("figure.engine iframe")
        page.keyboard.press("ArrowRight")
        until(frame, f"{STEP} === {first + 1}")
        page.keyboard.press("ArrowLeft")
        until(frame, f"{STEP} === {first}")
        frame.locator("#scrub").fill("27")
        until(frame, f"{STEP} === 27")
        until(frame, "document.getElementById('story').textContent.includes('#3 was admitted')")
        page.keyboard.press("Space")
        until(frame, f"{STEP} > 27")


def test_panels_survive_being_hidden_and_having_no_size(chromium, address):
    has_picture = "document.getElementById('pool').toDataURL().length > 4000"
    with chapter(chromium, address, "09-preemption") as (page, frame):
        for hidden in ("display: none", "width: 0", "height: 0"):
            page.locator("figure.engine").evaluate(
                "(each, style) => { each.style = style; }", hidden
            )
            frame.evaluate("view.player.stepForward()")
            page.wait_for_timeout(100)
            page.locator("figure.engine").evaluate("(each) => { each.style = ''; }")
            until(frame, "document.body.clientWidth > 0 && !view.stale")
            until(frame, has_picture)
            assert frame.locator("#failure").is_hidden()
        page.set_viewport_size({"width": 500, "height": 700})
        until(frame, f"innerWidth < 500 && {has_picture}")


def test_panels_take_the_theme_that_the_reader_chooses(chromium, address):
    with chapter(chromium, address, "03-paging", color_scheme="light") as (page, frame):
        page.evaluate("document.body.dataset.theme = 'dark'")
        until(frame, "document.documentElement.dataset.theme === 'dark'")
        page.evaluate("document.body.dataset.theme = 'auto'")
        until(frame, "document.documentElement.dataset.theme === 'light'")


@pytest.mark.parametrize("lack", ["no JavaScript", "no server"])
def test_without_scripts_or_a_server_there_is_a_picture(chromium, site, address, lack):
    page = new_page(chromium, java_script_enabled=lack != "no JavaScript")
    where = site.as_uri() if lack == "no server" else address
    page.goto(f"{where}/course/03-paging.html")
    assert page.locator("figure.engine iframe").is_hidden()
    assert page.locator("figure.engine p.no-panels").is_visible()
    picture = page.locator("figure.engine img")
    assert picture.is_visible()
    assert picture.evaluate("(each) => each.decode().then(() => each.naturalWidth)") == 2 * WIDTH
    assert picture.get_attribute("alt").startswith("Twenty blocks of eight slots;")
    page.close()


def test_the_link_below_the_panels_opens_the_same_run(chromium, address, python_in_site):
    with chapter(chromium, address, "09-preemption") as (page, frame):
        lines = "JSON.stringify(view.player.history.records)"
        recorded, step = frame.evaluate(lines), frame.evaluate(STEP)
        page.click("figure.engine figcaption a")
        until(page, "window.playing?.view.player.history?.records.length > 0")
        until(page, "playing.python.current === null && playing.view.isComplete")
        assert page.evaluate(f"playing.{lines[15:-1]}.length") > 50
        opened = page.evaluate("JSON.stringify(playing.view.player.history.records)")
        assert (opened, page.evaluate(f"playing.{STEP}")) == (recorded, step)
