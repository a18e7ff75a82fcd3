"""Two traces side by side: both are shown at the same time since their first request."""

import json

import pytest

from tests.lab.view.browser import page_at, until

pytestmark = pytest.mark.browser
LOADED = "window.pair !== undefined"
SECONDS = ("schedule_seconds", "run_seconds", "update_seconds")


def slow_down(record, start):
    """Return a record of an engine that is half as fast."""
    slow = {name: 2 * value if name in SECONDS else value for name, value in record.items()}
    for name in {"arrived", "started"} & slow.keys():
        slow[name] = start + 2 * (slow[name] - start)
    return slow


@pytest.fixture(scope="module")
def url(trace, serve_trace, tmp_path_factory):
    """The page of a trace, beside the same run on an engine that is half as fast."""
    header, *records = map(json.loads, trace.read_text(encoding="utf-8").splitlines())
    start = next(each["arrived"] for each in records if each["kind"] == "request")
    lines = [header, *(slow_down(each, start) for each in records)]
    slow = tmp_path_factory.mktemp("pair") / "slow.jsonl"
    slow.write_text("".join(f"{json.dumps(each)}\n" for each in lines), encoding="utf-8")
    return serve_trace(trace, slow)


@pytest.fixture
def page(chromium, url):
    with page_at(chromium, url, ready=LOADED) as page:
        yield page


def scores(page):
    """Return the cells of the table, a list for each engine."""
    return page.eval_on_selector_all(
        "#scores tr", "rows => rows.map((row) => [...row.cells].map((cell) => cell.innerText))"
    )


POSITIONS = "(time) => { pair.seek(time); return pair.sides.map((side) => side.position); }"


def test_both_are_shown_at_the_same_time(page):
    end = page.evaluate("pair.end")
    seen = set()
    for share in (0.1, 0.2, 0.35, 0.5):
        quick, _ = page.evaluate(POSITIONS, end * share)
        _, slow = page.evaluate(POSITIONS, 2 * end * share)
        assert quick == slow, "what one has done in a second, the other has done in two"
        assert page.evaluate("pair.sides[1].window.view.player.position") == slow
        seen.add(quick)
    assert len(seen) == 4
    page.evaluate("pair.seek(pair.end)")
    (_, *quick), (_, *slow) = scores(page)
    assert quick == slow, "in the end, both have done the same"
    assert int(quick[2]) > 0


def test_keys_step_and_play_both(page):
    page.keyboard.press("ArrowRight")
    first = page.evaluate("pair.time")
    assert first == page.evaluate("pair.ends[0]")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("pair.time") > first
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("pair.time") == first
    page.select_option("#speed", "256")
    page.click("#where")
    page.keyboard.press(" ")
    until(page, "pair.time > 0 && !pair.paused || pair.time === pair.end")
    until(page, "pair.paused && pair.time === pair.end")
    page.keyboard.press("t")
    documents = "[document, pair.sides[1].window.document]"
    themes = page.evaluate(f"{documents}.map((each) => each.documentElement.dataset.theme)")
    assert len(set(themes)) == 1


def test_each_engine_has_its_pool_and_its_batch(page):
    for frame in page.frames[1:]:
        assert frame.is_visible("#pool")
        assert frame.is_visible("#batch")
        assert not frame.is_visible("header")
