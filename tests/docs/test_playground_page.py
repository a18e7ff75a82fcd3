"""The playground: the scheduler and the pool, in Python for browsers, behind the view's panels."""

import json
from contextlib import contextmanager

import pytest

from minimal_vllm_lab.view.playground import PlaygroundSettings, play
from tests.lab.view.browser import page_at, until

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("python_in_site")]

RAN = "window.playing?.python.current === null && window.playing.view.isComplete"
RECORDS = "playing.view.player.history.records"
STEP = "playing.view.player.state.step"
FOREVER = "class MyScheduler:\n    while True:\n        pass\n"


def opened(chromium, address, fragment="", ready=RAN, **options):
    return page_at(chromium, f"{address}/playground.html#{fragment}", ready=ready, **options)


@pytest.fixture(scope="module")
def page(chromium, address):
    """A page on which Python has been loaded, which takes seconds."""
    with opened(chromium, address) as page:
        yield page


@contextmanager
def next_run(page):
    """Wait until the run that is begun here has ended."""
    before = page.evaluate("playing.python.number")
    yield
    until(page, f"playing.python.number > {before} && playing.python.current === null")


@pytest.fixture(autouse=True)
def start_again(request):
    """Begin each test that shares the page with the page's own settings."""
    if "page" in request.fixturenames:
        page = request.getfixturevalue("page")
        with next_run(page):
            page.click("#playground-reset")


def write(page, code):
    page.fill("#playground-code", code)
    with next_run(page):
        page.press("#playground-code", "Control+Enter")


def complaint(page):
    shown = [page.locator(f"#playground-{name}") for name in ("error", "code-error")]
    texts = [each.inner_text() for each in shown if each.is_visible()]
    return texts[0] if texts else None


def recorded(settings):
    lines = b"".join(play(settings).lines).splitlines()
    kept = [json.loads(line) for line in lines[1:]]
    return [each for each in kept if each["kind"] != "texts"]


def test_a_browser_records_what_python_records_here(page):
    assert page.evaluate(RECORDS) == recorded(PlaygroundSettings())
    assert page.evaluate(STEP) == 40
    assert "in this browser" in page.inner_text("#playground-status")


def test_a_changed_setting_changes_the_run(page):
    with next_run(page):
        page.select_option("[name=scheduling_policy]", "priority")
    with next_run(page):
        page.fill("[name=num_gpu_blocks_override]", "12")
    with next_run(page):
        page.uncheck("[name=enable_prefix_caching]")
    settings = PlaygroundSettings(
        scheduling_policy="priority", num_gpu_blocks_override=12, enable_prefix_caching=False
    )
    assert page.evaluate(RECORDS) == recorded(settings)
    rows = page.locator("#playground-scores tbody tr")
    assert rows.count() == 2
    assert rows.nth(0).inner_text() != rows.nth(1).inner_text()
    page.focus("[name=block_size]")
    assert page.inner_text("#playground-about") == "Number of tokens per KV block."


def test_limits_that_contradict_each_other_are_told_and_the_last_run_stays(page):
    with next_run(page):
        page.uncheck("[name=enable_chunked_prefill]")
    assert "without chunked prefill" in complaint(page)
    assert page.evaluate(RECORDS) == recorded(PlaygroundSettings())
    with next_run(page):
        page.fill("[name=max_num_batched_tokens]", "192")
    assert complaint(page) is None


def test_a_scheduler_is_edited_and_seen(page):
    with next_run(page):
        page.click("#playground-subclass")
    assert complaint(page) is None
    assert "MyScheduler" in page.evaluate("playing.view.facts.model")
    assert page.evaluate(RECORDS) != recorded(PlaygroundSettings())
    with next_run(page):
        page.click("#playground-whole")
    assert page.evaluate(RECORDS) == recorded(PlaygroundSettings())
    assert "class Scheduler:" in page.input_value("#playground-code")


def test_a_mistake_is_reported_and_its_line_is_selected(page):
    write(
        page,
        "from minimal_vllm.engine.scheduler import Scheduler\n\n"
        "class MyScheduler(Scheduler):\n    def admit_waiting(self, plan, budget):\n"
        "        print('budget', budget)\n        plan.admit()\n",
    )
    text = "Line 6 of the scheduler: AttributeError: 'Plan' object has no attribute 'admit'."
    assert complaint(page) == text
    chosen = "(({value, selectionStart: a, selectionEnd: b}) => value.slice(a, b))"
    area = "document.getElementById('playground-code')"
    assert page.evaluate(f"{chosen}({area})") == "        plan.admit()"
    assert page.inner_text("#playground-printed") == "budget 32"
    write(page, "class MyScheduler(\n")
    assert "step=-1" not in page.url
    assert "Line 1 of the scheduler" in complaint(page)
    assert "'(' was never closed" in complaint(page)


def test_a_loop_without_an_end_is_stopped_and_the_page_stays_alive(page):
    page.fill("#playground-code", FOREVER)
    page.press("#playground-code", "Control+Enter")
    until(page, "!document.getElementById('playground-stop').disabled")
    first = page.evaluate(STEP)
    page.frame_locator("#playground-view").locator("#step").click()
    until(page, f"{STEP} === {first + 1}")
    page.click("#playground-stop")
    assert complaint(page) == "You stopped it."
    with next_run(page):
        page.select_option("#playground-which", "engine")
    assert complaint(page) is None


def test_the_run_before_is_shown_beside_this_one_at_the_same_step(page):
    page.check("#playground-beside")
    with next_run(page):
        page.click("#playground-subclass")
    until(page, "document.getElementById('playground-name').innerText === 'This run: MyScheduler'")
    assert page.inner_text("#playground-name-before") == "The run before: the page's settings"
    before = page.locator("#playground-view-before").element_handle().content_frame()
    until(before, "window.view?.isComplete && view.player.state.step === 40")
    assert before.evaluate(RECORDS.removeprefix("playing.")) == recorded(PlaygroundSettings())
    page.evaluate("playing.view.player.seekStep(50)")
    until(before, "view.player.state.step === 50")
    page.uncheck("#playground-beside")
    assert page.locator("#playground-view-before").is_hidden()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_a_link_restores_settings_scheduler_and_step(chromium, address, page, width, scheme):
    page.fill(
        "#playground-code", page.input_value("#playground-code").replace("-request", "request")
    )
    with next_run(page):
        page.select_option("#playground-which", "own")
    with next_run(page):
        page.fill("[name=seed]", "7")
    page.evaluate("playing.view.player.seekStep(33)")
    page.click("#playground-link")
    until(page, "/step=33/.test(location.hash)")
    link, code = page.evaluate("location.hash.slice(1)"), page.input_value("#playground-code")
    options = {"viewport": {"width": width, "height": 844}, "color_scheme": scheme}
    with opened(chromium, address, link, ready="window.playing", **options) as other:
        assert other.input_value("#playground-code") == code
        assert complaint(other) == "This scheduler came with the link. Press Run if you trust it."
        assert other.evaluate("playing.view.player.history") is None  # others' code must wait
        with next_run(other):
            other.click("#playground-run-code")
        assert complaint(other) is None
        assert other.evaluate(RECORDS) == page.evaluate(RECORDS)
        assert other.evaluate(STEP) == 33
        assert other.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert other.evaluate("playing.view.facts.model").startswith("No model, scheduled by")


def test_the_keyboard_is_enough(page):
    page.focus("[name=scheduling_policy]")
    for _ in range(2):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "block_size"
    with next_run(page):
        page.keyboard.press("ArrowUp")
    assert page.evaluate("playing.view.facts.block_size") == 9
    page.focus("#playground-code")
    page.keyboard.press("Tab")  # the editor lets the focus go
    assert page.evaluate("document.activeElement.id") != "playground-code"


def test_a_copy_of_the_site_without_python_says_so(chromium, address):
    page = chromium.new_page()
    page.route("**/python/files.json", lambda route: route.fulfill(json={"wheels": []}))
    page.goto(f"{address}/playground.html")
    until(page, "/built without Python/.test(document.body.innerText)")
    page.close()
