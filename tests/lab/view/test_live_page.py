"""The page with a real engine: every control, and its effect on the engine."""

import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from itertools import pairwise
from statistics import median

import httpx2
import pytest

from minimal_vllm.demo import DEMO_MODEL_DIR
from tests.lab.view.browser import actual, new_page, page_at, pixels, rebuilt, until
from tests.server.harness import ENVIRONMENT, PATIENCE, process

pytestmark = pytest.mark.browser
SMALL = ["--num-gpu-blocks-override=12", "--max-model-len=96", "--max-num-seqs=4"]
TINY_BUDGET = "--max-num-batched-tokens=24"
CROWDED = ["--no-tour", "--requests-per-100-steps=60", "--steps-per-second=40"]
BEGINNING = "The old captain looked at the sea, and then he looked at the ship, and said:"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    trace = tmp_path_factory.mktemp("live") / "trace.jsonl"
    with process("--view", f"--trace={trace}", TINY_BUDGET, *SMALL) as server:
        server.trace = trace
        yield server


@pytest.fixture
def page(chromium, server):
    with page_at(chromium, f"{server.url}/view") as page:
        until(page, "view.player.isLive")
        page.evaluate("view.player.setSpeed(0)")
        yield page
        page.evaluate("view.player.play()")
        until(page, "!view.player.paused")
        until(page, "view.player.history.head.requests.size === 0")


def state_of(server):
    return server.get("/view/state").json()


def pause(page):
    page.click("#play")
    until(page, "view.player.paused")


def send(server, count, max_tokens=40):
    """Send requests from other clients to a paused engine, and wait until they have arrived."""
    bodies = [
        {
            "prompt": f"{BEGINNING} {word}",
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "temperature": 0,
        }
        for word in ("Good", "Never", "Where", "I", "Who", "No")[:count]
    ]
    for body in bodies:
        arguments = {"url": f"{server.url}/v1/completions", "json": body, "timeout": None}
        threading.Thread(target=httpx2.post, kwargs=arguments).start()
    deadline = time.monotonic() + PATIENCE
    while len(state_of(server)["requests"]) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def set_speed(page, value):
    """Select a speed, and wait for the server's answer, so that no later request overtakes it."""
    with page.expect_response("**/view/pace"):
        page.select_option("#speed", value)


def step(page):
    before = page.evaluate("view.player.history.head.step")
    page.click("#step")
    until(page, f"view.player.history.head.step === {before + 1}")


def test_at_every_step_the_page_knows_the_engines_own_state(page, server):
    pause(page)
    send(server, 6)
    for _ in range(25):
        step(page)
        assert rebuilt(page) == actual(state_of(server))


def test_a_paused_engine_computes_nothing_until_it_is_stepped(page, server):
    pause(page)
    send(server, 1)
    before = state_of(server)
    time.sleep(0.5)
    assert state_of(server) == before
    step(page)
    assert state_of(server)["step"] == before["step"] + 1
    time.sleep(0.3)
    assert state_of(server)["step"] == before["step"] + 1


def test_a_prompt_typed_into_a_paused_page_waits_and_is_followed_to_its_end(page, server):
    pause(page)
    page.fill("#prompt", "It was a dark and stormy night, and")
    page.fill("#max-tokens", "5")
    page.press("#prompt", "Enter")
    assert page.evaluate("document.activeElement.id") == "", "keys would go on into the prompt"
    until(page, "view.player.history.head.requests.size === 1")
    until(page, "document.querySelector('#waiting-count').textContent === '1'")
    assert [each["status"] for each in state_of(server)["requests"]] == ["waiting"]
    step(page)
    until(page, "document.querySelector('#inspector').innerText.includes('running')")
    (request,) = state_of(server)["requests"]
    assert "stormy" in page.inner_text("#inspector")
    shown = page.eval_on_selector_all(
        "#inspector .physical[data-block]", "cells => cells.map(c => Number(c.dataset.block))"
    )
    assert shown == request["block_table"]
    page.click("#play")
    until(page, "document.querySelector('#inspector').innerText.includes('finished')")
    assert state_of(server)["requests"] == []


def test_a_click_on_send_sends_the_placeholder_prompt(page, server):
    pause(page)
    page.click("#prompt-form button")
    until(page, "view.player.history.head.requests.size === 1")
    step(page)
    until(page, "document.querySelector('#inspector').innerText.includes('stormy')")


def test_going_back_shows_the_same_pictures_and_stops_the_engine(page, server):
    pause(page)
    send(server, 4)
    page.evaluate("view.select({ arrival: null, block: 0 })")
    pictures = []
    for _ in range(12):
        step(page)
        pictures.append((page.evaluate("view.player.state.step"), pixels(page)))
    page.click("#play")
    until(page, f"view.player.history.head.step > {pictures[-1][0] + 3}")
    page.click("#back")
    until(page, "view.player.paused")
    stopped_at = state_of(server)["step"]
    for number, picture in reversed(pictures):
        page.evaluate(f"view.player.seekStep({number})")
        now = pixels(page)
        assert now[0] == picture[0], f"the pool at step {number} looks otherwise"
    assert state_of(server)["step"] == stopped_at
    first = pictures[0][0]
    page.click("#step")
    until(page, f"view.player.state.step === {first + 1}")
    assert state_of(server)["step"] == stopped_at, "a step in the past is none of the engine's"
    page.click("#live")
    until(page, f"view.player.state.step === {stopped_at}")


@pytest.mark.parametrize(
    ("button", "field"), [("preemption", "preempted"), ("eviction", "evicted_blocks")]
)
def test_the_engine_runs_to_the_next_occasion_and_pauses_right_there(page, server, button, field):
    pause(page)
    send(server, 6)
    page.click(f"#{button}")
    until(page, f"view.player.history.head.now.record?.{field}.length > 0 && view.player.paused")
    assert state_of(server)["step"] == page.evaluate("view.player.history.head.step")


def test_the_engine_runs_at_the_selected_speed(page, server):
    pause(page)
    send(server, 1, max_tokens=6)
    set_speed(page, "2")
    page.click("#play")
    until(page, "view.digest.columns.length >= 6")
    begun = page.evaluate("view.digest.columns.slice(-6).map((column) => column.time)")
    # A step may be late, and the next one in time: but not all of them.
    assert median(later - earlier for earlier, later in pairwise(begun)) > 0.3
    set_speed(page, "0")


def test_the_keyboard_does_what_the_buttons_do(page, server):
    page.keyboard.press(" ")
    until(page, "view.player.paused")
    send(server, 1)
    before = state_of(server)["step"]
    page.keyboard.press("ArrowRight")
    until(page, f"view.player.state.step === {before + 1}")
    page.keyboard.press("ArrowRight")
    until(page, f"view.player.state.step === {before + 2}")
    page.keyboard.press("ArrowLeft")
    until(page, f"view.player.state.step === {before + 1}")
    page.keyboard.press("l")
    until(page, f"view.player.state.step === {before + 2}")
    page.keyboard.press("+")
    page.keyboard.press("-")
    page.keyboard.press("?")
    assert page.is_visible("#help-dialog")
    page.keyboard.press("Escape")
    page.keyboard.press("t")
    theme = page.evaluate("document.documentElement.dataset.theme")
    page.keyboard.press("t")
    assert page.evaluate("document.documentElement.dataset.theme") != theme
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == ""


def test_up_and_down_go_through_the_requests_of_the_batch(page, server):
    pause(page)
    send(server, 3)
    step(page)
    arrivals = {each["arrival"] for each in state_of(server)["requests"]}
    until(page, "!view.stale")
    rows = page.evaluate("view.digest.rows.map((row) => [row.lane, row.arrival])")
    there = [arrival for _, arrival in sorted(rows) if arrival in arrivals]  # from top to bottom
    assert len(there) == 3
    page.evaluate(f"view.select({{ arrival: {there[0]}, block: null }})")
    until(page, "!view.stale")
    page.focus("#batch")
    for key, expected in (
        *(("ArrowDown", there[1]), ("ArrowDown", there[2]), ("ArrowDown", there[2])),
        *(("ArrowUp", there[1]), ("ArrowUp", there[0]), ("ArrowUp", there[0])),
    ):
        page.keyboard.press(key)
        until(page, "!view.stale")
        assert page.evaluate("view.selection.arrival") == expected
    page.evaluate(  # two in one frame are two
        """for (const _ of [1, 2]) document.getElementById("batch").dispatchEvent(
        new KeyboardEvent("keydown", { key: "ArrowDown", bubbles: true, cancelable: true }))"""
    )
    assert page.evaluate("view.selection.arrival") == there[2]
    before = state_of(server)["step"]
    page.keyboard.press("ArrowRight")  # still goes on in time
    until(page, f"view.player.state.step === {before + 1}")


def test_a_click_on_a_block_shows_its_text_and_all_requests_that_share_it(page, server):
    pause(page)
    send(server, 3)
    for _ in range(8):
        step(page)
    state = state_of(server)
    tables = {each["arrival"]: each["block_table"] for each in state["requests"]}
    shared = next(
        block for block in tables[min(tables)] if sum(block in t for t in tables.values()) > 1
    )
    x, y = page.evaluate(
        """(block) => { const p = view.pool; return [(block % p.columns + 0.5) * p.width,
        (Math.floor(block / p.columns) + 0.5) * p.height]; }""",
        shared,
    )
    page.click("#pool", position={"x": x, "y": y})
    until(
        page, f"document.querySelector('.block-card')?.innerText.includes('Block {shared}: shared')"
    )
    named = page.eval_on_selector_all(
        ".block-card .chip", "chips => chips.map((chip) => Number(chip.dataset.arrival))"
    )
    assert sorted(named) == sorted(each for each in tables if shared in tables[each])
    chosen = page.evaluate("view.selection.arrival")
    page.click("#pool", position={"x": x, "y": y})
    until(page, f"view.selection.arrival !== {chosen}")
    page.focus("#pool")
    page.keyboard.press("ArrowRight")
    until(page, f"view.selection.block === {shared + 1}")


def test_a_rejected_prompt_is_explained_and_can_be_corrected(chromium, server):
    with page_at(chromium, f"{server.url}/view", may_complain_of="status of 422") as page:
        page.fill("#prompt", "word " * 200)
        page.press("#prompt", "Enter")
        until(page, "!document.querySelector('#message').hidden")
        assert "max_model_len is 96" in page.inner_text("#message")
        assert page.input_value("#prompt") == "word " * 200
        page.fill("#prompt", "A word")
        page.press("#prompt", "Enter")
        assert page.is_hidden("#message"), "that was the last prompt's"


def test_many_prompts_leave_a_connection_to_go_on_with(page, server):
    pause(page)
    for count in range(1, 9):
        page.fill("#prompt", f"Good evening {count}")
        page.fill("#max-tokens", "2")
        page.press("#prompt", "Enter")
        until(page, f"view.mine.size === {count}")
    step(page)


def test_a_sent_prompt_is_selected_whatever_was_selected_before(page, server):
    pause(page)
    send(server, 2)
    for _ in range(3):
        step(page)
    page.click("#back")
    page.click("#running-list .chip")
    until(page, "view.selection.arrival !== null && !view.player.follows")
    page.fill("#prompt", "Good evening")
    page.press("#prompt", "Enter")
    until(page, "view.player.follows && view.mine.has(view.selection.arrival)")
    until(page, "document.querySelector('#inspector').innerText.includes('your prompt')")
    assert "waiting" in page.inner_text("#inspector")


def test_the_names_of_requests_can_be_clicked_and_focused_while_the_engine_runs(page, server):
    pause(page)
    send(server, 3)
    for _ in range(4):
        step(page)
    until(page, "document.querySelectorAll('#running-list .chip').length === 3")
    for place in ("#running-list .chip:nth-child(2)", "#inspector .with .chip"):
        page.focus(place)
        page.hover(place)
        wanted = page.evaluate("(place) => document.querySelector(place).dataset.arrival", place)
        page.mouse.down()
        step_by_key(page)
        step_by_key(page)
        focused = page.evaluate("document.activeElement.dataset.arrival")
        page.mouse.up()
        assert focused == wanted
        assert page.evaluate("view.selection.arrival") == int(wanted)


def step_by_key(page):
    """Make one step with the keyboard, and wait until it is drawn."""
    before = page.evaluate("view.player.history.head.step")
    page.keyboard.press("ArrowRight")
    until(page, f"view.player.history.head.step === {before + 1}")
    until(page, "!view.stale && !view.wordsAreStale")


def test_a_request_under_the_pointer_shows_its_blocks_and_what_it_did(page, server):
    pause(page)
    send(server, 3)
    for _ in range(4):
        step(page)
    tables = {each["arrival"]: each["block_table"] for each in state_of(server)["requests"]}
    shown = "[...document.querySelectorAll('#inspector .physical')].map((e) => +e.dataset.block)"
    last = max(tables)
    page.hover(f"#running-list [data-arrival='{last}']")
    until(page, f"{shown}.join() === '{','.join(map(str, tables[last]))}'")
    assert sorted(page.evaluate("[...view.emphasis(view.player.state)]")) == sorted(tables[last])
    first = min(tables)
    x, y = page.evaluate(
        """(arrival) => { const { batch, digest } = view;
        const row = digest.rows.find((each) => each.arrival === arrival);
        return [batch.x(row.cells[0].step) + 3, batch.y(row.lane) + 3]; }""",
        first,
    )
    page.hover("#batch", position={"x": x, "y": y})
    until(page, f"{shown}.join() === '{','.join(map(str, tables[first]))}'")
    assert re.search(rf"#{first} .*\nstep \d+: \d+ tokens of its prompt", page.inner_text("#tip"))
    page.evaluate(f"view.select({{ arrival: {last}, block: null }})")
    # The pointer lies still.
    until(page, f"{shown}.join() === '{','.join(map(str, tables[last]))}'")
    page.keyboard.press("Escape")
    page.hover("#where")
    until(page, "view.pointed.arrival === null")
    assert page.evaluate("view.emphasis(view.player.state)") is None


def test_a_token_is_followed_from_its_query_to_the_next_tokens(page, server):
    pause(page)
    send(server, 2)
    for _ in range(4):
        step(page)
    page.keyboard.press("f")
    until(page, "view.lens.report !== null && !view.stale && !view.wordsAreStale")
    arrival = page.evaluate("view.lens.arrival")
    (request,) = (each for each in state_of(server)["requests"] if each["arrival"] == arrival)
    newest = request["num_computed_tokens"] - 1
    assert page.evaluate("view.lens.report.position") == newest
    assert page.evaluate("[...view.lens.light.keys()]") == request["block_table"]
    assert page.locator("#lens-text .seen").count() == newest + 1
    assert page.locator("#lens-candidates li").count() in (10, 11)
    page.fill("#lens-temperature", "0")
    until(page, "view.lens.report.temperature === 0")
    assert page.evaluate("view.lens.report.candidates[0].after") == 1
    page.click("#lens-previous")
    until(page, f"view.lens.report.position === {newest - 1}")
    page.click("#lens-next")
    step_by_key(page)
    until(page, f"view.lens.report.position === {newest + 1}")  # it goes on with the engine
    page.keyboard.press("ArrowLeft")
    until(page, "document.querySelector('#lens-hint').innerText.includes('the past')")
    page.keyboard.press("Escape")
    until(page, "document.querySelector('#lens-panel').hidden && view.lens.light === null")


@pytest.mark.parametrize("width", ["0", "1px", "40px"])
def test_a_page_that_was_hidden_or_tiny_draws_again(page, server, width):
    pause(page)
    send(server, 3)
    page.evaluate(f"""() => {{
      if ({width!r} === "0") document.body.style.display = "none";
      else document.body.style.width = {width!r};
    }}""")
    for _ in range(3):
        step_now(page)
    page.evaluate("document.body.removeAttribute('style')")
    step(page)
    until(page, "document.querySelector('#pool').width > 100 && !view.stale")
    assert page.is_hidden("#failure")
    until(page, "document.querySelector('#running-count').textContent === '3'")


def step_now(page):
    """Make a step without a click, which needs a visible button."""
    before = page.evaluate("view.player.history.head.step")
    page.evaluate("view.player.stepForward()")
    until(page, f"view.player.history.head.step === {before + 1}")


def test_a_panel_that_fails_is_reported_and_ends_no_later_frame(chromium, server):
    url = f"{server.url}/view"
    with page_at(chromium, url, may_complain_of="no such color") as page:
        page.evaluate("""() => {
          const draw = view.pool.draw;
          view.mend = () => { view.pool.draw = draw; };
          view.pool.draw = () => { throw new Error("no such color"); };
          view.changed();
        }""")
        until(page, "!document.querySelector('#failure').hidden")
        assert "no such color" in page.get_attribute("#failure", "title")
        assert page.is_hidden("#mode"), "the badge says live, and nothing is drawn"
        page.evaluate("view.mend()")
        until(page, "document.querySelector('#failure').hidden && !view.stale")
        assert page.is_visible("#mode")


def test_a_search_says_what_it_looks_for_and_does_not_wait_between_steps(page, server):
    pause(page)
    set_speed(page, "0.5")
    send(server, 1, max_tokens=12)  # alone, it is never preempted
    page.click("#preemption")
    until(page, "document.querySelector('#mode').innerText.includes('to the next preemption')")
    begun = time.monotonic()
    until(page, "view.player.history.head.requests.size === 0")
    assert time.monotonic() - begun < 12 * 2, "as slow as the pace of the demonstration"
    set_speed(page, "0")


def test_a_waiting_request_says_why_and_what_happens_next(page, server):
    pause(page)
    send(server, 6)
    page.evaluate("view.select({ arrival: null, block: null })")
    step(page)
    last = page.evaluate("view.player.state.inOrder('waiting').at(-1).arrival")
    page.evaluate(f"view.select({{ arrival: {last}, block: null }})")
    until(page, "document.querySelector('#inspector .reasons') !== null")
    reasons = page.inner_text("#inspector .reasons")
    running = page.evaluate("view.player.state.inOrder('running').length")
    before = page.evaluate("view.player.state.inOrder('waiting').length") - 1
    assert f"{before} request" in reasons if before else "first in the queue" in reasons
    assert ("seats" in reasons) == (running == 4)


def test_the_numbers_are_those_of_the_records(page, server):
    pause(page)
    send(server, 2, max_tokens=10)
    until(page, "view.player.history.head.requests.size === 2")
    page.click("#play")
    until(page, "view.player.history.head.requests.size === 0")
    state = state_of(server)
    until(page, "!view.stale && !view.wordsAreStale")
    rate = 100 * state["prefix_hits"] / state["prefix_queries"]
    assert page.inner_text("#hits-value") == f"{rate:.0f} %"
    assert page.inner_text("#ended-count") == str(
        page.evaluate("view.player.history.head.numEnded")
    )


NOTE_TRAFFIC = """() => {
  const take = view.controls.takeTraffic;
  view.controls.takeTraffic = (settings) => {
    window.traffic = settings;
    take.call(view.controls, settings);
  };
}"""


def set_traffic(page, **settings):
    """Change settings of the demo traffic one by one, and wait until the page gets each change."""
    for name, value in settings.items():
        page.fill(f"#{name}", str(value))
        until(page, f"window.traffic?.{name} === {value}")


def requests_at(url):
    return httpx2.get(f"{url}/state", timeout=PATIENCE).json()["requests"]


def until_idle(url):
    """Wait until all requests have finished."""
    deadline = time.monotonic() + PATIENCE
    while requests_at(url):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def demo(*options):
    """Run a view with demo traffic, and yield the address of its page."""
    command = [
        sys.executable,
        "-m",
        "minimal_vllm",
        "view",
        "--no-browser",
        f"--model={DEMO_MODEL_DIR}",
        *options,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        yield re.search(r"at (\S+)", process.stdout.readline())[1]
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_demo_traffic_follows_its_controls(chromium):
    with demo("--no-tour", "--requests-per-100-steps=0") as url, page_at(chromium, url) as page:
        until(page, "view.player.isLive && !document.querySelector('#traffic').hidden")
        page.evaluate(NOTE_TRAFFIC)
        set_speed(page, "0")
        time.sleep(0.6)
        assert requests_at(url) == []
        set_traffic(page, output_tokens=8, prompt_tokens=40, requests_per_100_steps=60)
        until(page, "view.player.history.head.numEnded > 5")
        requests = page.evaluate(
            "view.player.history.head.ended.map((r) => [r.numPrompt, r.numTokens])"
        )
        assert all(20 <= prompt <= 60 for prompt, _ in requests)
        assert all(4 <= total - prompt <= 12 for prompt, total in requests)
        page.focus("#shared_prefix_tokens")
        page.keyboard.press("ArrowRight")
        until(page, "window.traffic.shared_prefix_tokens === 48")
        assert not page.evaluate("view.player.paused"), "the key was the slider's alone"
        page.keyboard.press(" ")
        until(page, "view.player.paused")
        page.keyboard.press(" ")
        until(page, "!view.player.paused")
        set_traffic(page, requests_per_100_steps=0)
        until_idle(url)
        set_speed(page, "0.5")
        set_traffic(page, output_tokens=160, requests_per_100_steps=1)
        until(page, "view.player.history.head.requests.size === 1")  # at once, not in 100 steps
        time.sleep(1.2)
        assert page.evaluate("view.player.history.head.requests.size") == 1, "it is busy"
        set_traffic(page, requests_per_100_steps=0)
        set_speed(page, "0")
        until_idle(url)
        pause(page)
        set_traffic(page, requests_per_100_steps=60)
        time.sleep(1.2)
        assert requests_at(url) == [], "it came to a paused engine"


def test_demo_requests_make_room_for_a_visitors_prompt(chromium):
    with (
        demo("--no-tour", "--requests-per-100-steps=60", *SMALL) as url,
        page_at(chromium, url) as page,
    ):
        until(page, "view.player.state.inOrder('waiting').length >= 4")
        page.fill("#prompt", "It was a dark and stormy night, and")
        page.press("#prompt", "Enter")
        until(page, "view.mine.size === 1")
        until(page, "document.querySelector('#inspector').innerText.includes('finished')")
        mine = page.evaluate("""() => {
          const [arrival] = view.mine;
          const row = view.digest.rows.find((each) => each.arrival === arrival);
          return [row.from, row.cells[0].step, row.cells.map((cell) => cell.kind)];
        }""")
        came, admitted, kinds = mine
        assert admitted - came < 20, "it waited behind the demo traffic"
        assert "preempted" not in kinds
        until(page, "view.player.state.inOrder('waiting').length >= 4")  # the traffic has resumed


def test_a_key_is_asked_for_and_then_used(chromium):
    with process("--view", "--api-key=secret") as server:
        page = new_page(chromium)
        page.goto(f"{server.url}/view")
        until(page, "document.querySelector('#key-dialog').open")
        page.fill("#key", "secret")
        page.press("#key", "Enter")
        until(page, "window.view?.player.isLive === true")
        page.click("#play")
        until(page, "view.player.paused")
        page.close()


def test_a_server_that_is_paused_can_still_be_shut_down():
    with process("--view", f"--shutdown-timeout={PATIENCE}") as server:
        server.post("/view/pace", paused=True)
        answers = []
        body = {"prompt": "Good evening", "max_tokens": 4, "ignore_eos": True}
        client = threading.Thread(
            target=lambda: answers.append(server.post("/v1/completions", **body))
        )
        client.start()
        while not server.get("/view/state").json()["requests"]:
            time.sleep(0.02)
        server.terminate()
        assert server.wait()[0] == 0
        client.join()
        assert answers[0].status_code == 200
