"""The tour: eight stops with a real engine, taken by keyboard."""

import pytest

from tests.lab.view.browser import page_at, until
from tests.lab.view.test_live_page import demo, requests_at

pytestmark = pytest.mark.browser
SMALL = (
    "--tour",
    "--num-gpu-blocks-override=20",
    "--max-model-len=96",
    "--requests-per-100-steps=60",
)
STATE = "view.player.state"
STOPS = (
    ("An empty pool", f"{STATE}.counts[0] === 20"),
    (
        "Prefill",
        f"{STATE}.inOrder('running')[0].computed === {STATE}.inOrder('running')[0].numPrompt",
    ),
    ("Decode", f"{STATE}.inOrder('running')[0].computed > {STATE}.inOrder('running')[0].numPrompt"),
    ("A shared prefix", f"{STATE}.counts[3] === 2 && {STATE}.inOrder('running').length === 2"),
    ("The pool is full", f"{STATE}.counts[0] === 0 && {STATE}.counts[1] > 0"),
    ("Eviction", f"{STATE}.now.evicted.length > 0"),
    ("Preemption", f"{STATE}.now.preempted.length > 0"),
    ("The end", f"{STATE}.requests.size === 0 && {STATE}.numEnded === 8"),
)
"""Title of each stop, and what the page must show there."""
LONG_WAYS = (4, 7)
"""Stops that are many steps from the one before, so that the page tells what happens meanwhile."""
PREEMPTED = """() => view.digest.rows.flatMap((row) => row.cells
  .filter((cell) => cell.kind === "preempted").map((cell) => [cell.step, `#${row.arrival}`]))"""
COMPUTED_AGAIN = """() => view.digest.rows.flatMap((row) => row.cells
  .filter((cell) => cell.again > 0)
  .map(({ step, kind, count, again }) => ({ arrival: row.arrival, step, kind, count, again })))"""
COLUMN = """(step) => {
  const { prompt, decode, again } = view.digest.column(step);
  return { prompt, decode, again };
}"""
SHOWN = """() => [...document.querySelectorAll("main > .panel")]
  .filter((each) => each.offsetParent !== null).map((each) => each.classList[1])"""


@pytest.fixture(scope="module")
def url():
    with demo(*SMALL) as url:
        yield url


def wait_for_stop(page, number):
    until(page, f"view.tour.stop === {number} && !view.tour.isRunning && !view.tour.isStarting")
    until(page, "!view.stale")


def next_stop(page, number):
    """Go to the next stop without waiting between steps."""
    page.keyboard.press("ArrowRight")
    if number in LONG_WAYS:
        until(page, "document.getElementById('mode').innerText === 'running'")
        assert page.inner_text("#tour-title") == f"On the way to stop {number + 1}"
    page.evaluate("view.tour.hurries = true")
    wait_for_stop(page, number)


def test_the_first_viewer_is_taken_through_eight_stops_and_then_sees_everything(chromium, url):
    with page_at(chromium, url) as page:
        for number, (title, is_shown) in enumerate(STOPS):
            if number:
                next_stop(page, number)
            else:
                wait_for_stop(page, 0)
            assert page.inner_text("#tour-number") == f"Stop {number + 1} of 8"
            assert page.inner_text("#tour-title").startswith(title)
            assert page.evaluate(is_shown), title
            assert page.evaluate("view.player.paused")
            assert page.inner_text("#mode") == "engine paused"
            assert page.evaluate("document.activeElement.id") == "tour-next"
            panels = page.evaluate(SHOWN)
            assert panels == (["tour", "pool"] if number < 4 else ["tour", "pool", "batch"])
            assert "undefined" not in page.inner_text("#tour")
            if title == "A shared prefix":
                until(page, "!view.wordsAreStale")
                in_use = page.evaluate(f"{STATE}.counts[2] + {STATE}.counts[3]")
                assert f"{in_use} in use (2 of them shared)" in page.inner_text("#counts")
        victims = dict.fromkeys(name for _, name in sorted(page.evaluate(PREEMPTED)))
        assert f"{' and later '.join(victims)} w" in page.inner_text("#tour")
        free, cached, *_ = page.evaluate(f"{STATE}.counts")
        until(page, "!view.wordsAreStale")
        assert page.inner_text("#counts") == f"{free} free · {cached} cached · 0 in use"
        page.keyboard.press("ArrowLeft")
        until(page, "view.tour.stop === 6 && !view.stale")
        assert page.evaluate(STOPS[6][1]), "back shows the engine as it was"
        page.keyboard.press("ArrowRight")
        until(page, "view.tour.stop === 7")
        page.keyboard.press("Enter")  # the button has the focus
        until(page, "!view.tour.isOn && !view.player.paused")
        until(page, f"{STATE}.requests.size > 0")  # the demo traffic
        until(page, "document.querySelector('#story').offsetParent !== null")
        assert page.evaluate(SHOWN) == [
            "pool",
            "you",
            "near",
            "batch",
            "traffic",
            "queue",
            "numbers",
        ]


def test_the_tour_can_be_taken_again_and_left_at_any_stop(chromium, url):
    with page_at(chromium, url) as page:
        until(page, f"{STATE}.requests.size > 0")
        assert not page.evaluate("view.tour.isOn"), "only the first viewer gets it unasked"
        page.keyboard.press("g")
        wait_for_stop(page, 0)
        assert page.evaluate(STOPS[0][1]), "the demo traffic has left, and its blocks are forgotten"
        next_stop(page, 1)
        assert [each["request_id"][:9] for each in requests_at(url)] == ["cmpl-tour"]
        page.keyboard.press("Escape")
        until(page, "!view.tour.isOn && !view.player.paused")
        until(page, f"[...{STATE}.requests.keys()].every((id) => id.startsWith('demo-'))")


def test_a_page_that_is_opened_during_a_tour_restarts_it(chromium, url):
    with page_at(chromium, url) as page:
        until(page, "view.player.isLive")
        page.keyboard.press("g")
        wait_for_stop(page, 0)
        page.reload()
        until(page, "window.view?.player.history != null")
        wait_for_stop(page, 0)
        page.click("#tour-skip")
        until(page, "!view.tour.isOn && !view.player.paused")


def test_the_last_chunk_of_a_preempted_request_is_no_decode(chromium, url):
    with page_at(chromium, url) as page:
        until(page, "view.player.isLive")
        page.keyboard.press("g")
        wait_for_stop(page, 0)
        for number in range(1, 8):
            next_stop(page, number)
        cells = page.evaluate(COMPUTED_AGAIN)
        assert {each["kind"] for each in cells} == {"again"}
        last = [each for each in cells if each["count"] == each["again"] + 1]
        assert last, "it computes the newest token too"
        for each in cells:
            column = page.evaluate(COLUMN, each["step"])
            assert column["again"] >= each["again"]
            others = [one for one in cells if one["step"] == each["step"]]
            assert column["again"] == sum(one["again"] for one in others)
        page.keyboard.press("Escape")
        until(page, "!view.tour.isOn && !view.player.paused")


SUITS = """async (changes) => {
  const { Tour } = await import("/view/page/tour.js");
  return Tour.suits({ ...view.facts, ...changes });
}"""


def test_an_engine_that_would_not_show_all_stops_has_no_tour(chromium, url):
    with page_at(chromium, url) as page:
        assert page.evaluate(SUITS, {})
        for facts in (
            {"num_blocks": 1000},
            {"max_num_seqs": 4},
            {"max_model_len": 64},
            {"enable_prefix_caching": False},
        ):
            assert not page.evaluate(SUITS, facts), facts
