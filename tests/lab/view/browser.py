"""A browser for tests of the view: Debian's Chromium, driven by Playwright."""

import shutil
import time
from contextlib import contextmanager

from playwright.sync_api import sync_playwright

from tests.server.harness import PATIENCE

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


LOADED = "window.view?.player.history != null"
"""JavaScript that is true when the page of one engine has been loaded."""


@contextmanager
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=ARGUMENTS, timeout=1000 * PATIENCE
        )
        try:
            yield chromium
        finally:
            chromium.close()


def new_page(chromium, **options):
    page = chromium.new_page(**options)
    page.set_default_timeout(1000 * PATIENCE)
    return page


@contextmanager
def page_at(chromium, url, may_complain_of="nothing", ready=LOADED, **options):
    """Open a page of the view, and fail if its console has other messages than expected."""
    page = new_page(chromium, **{"viewport": {"width": 1280, "height": 900}, **options})
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(url)
    until(page, ready, complaints)
    yield page
    page.close()
    unexpected = [each for each in complaints if may_complain_of not in each]
    assert unexpected == [], unexpected


def until(page, condition, complaints=()):
    """Wait until a JavaScript expression is true; if in vain, tell what the page complained of.

    Playwright's own way of waiting is forbidden by the page's content security policy.
    """
    deadline = time.monotonic() + PATIENCE
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, f"waited in vain: {condition}; {complaints}"
        time.sleep(0.02)


def stop(page):
    """Pause a trace, which starts to play when it is loaded, or wait until it has ended."""
    until(page, f"!view.player.paused || {AT_END}")
    page.evaluate("view.player.pause()")


AT_END = "(view.player.isAtEnd && view.player.history.head.step >= 0)"

REBUILD = """(state) => {
  const ordered = [...state.inOrder("running"), ...state.inOrder("waiting")];
  return {
    step: state.step,
    requests: ordered.map((r) => ({
      request_id: r.id, arrival: r.arrival, priority: r.priority, status: r.status,
      token_ids: r.tokens.slice(0, r.numTokens), num_prompt_tokens: r.numPrompt,
      num_computed_tokens: r.computed, num_cached_tokens: r.cached ?? 0,
      num_preemptions: r.preemptions, block_table: r.table.slice(),
    })),
    hashes: Object.fromEntries([...state.hashes.entries()].filter(([, hash]) => hash !== null)),
    eviction_order: state.evictionOrder(),
    prefix_queries: state.prefixQueries,
    prefix_hits: state.prefixHits,
  };
}"""
"""JavaScript that returns the state rebuilt by the page in the format of ``/view/state``."""


PIXELS = """() => ["pool", "batch"].map((id) => document.getElementById(id).toDataURL())"""


def pixels(page):
    """Return the pictures of pool and batch as data URLs, when the page has drawn the current
    state.
    """
    until(page, "!view.stale && !view.wordsAreStale")
    return page.evaluate(PIXELS)


STORED_DIFFERENTLY = ("arrived", "params", "block_hashes", "num_findable_blocks")


def rebuilt(page):
    """Return the state that the page has rebuilt."""
    return page.evaluate(f"({REBUILD})(view.player.history.head)")


def actual(state):
    """Return the engine's own state from a snapshot, without fields that the page stores
    differently.
    """
    kept = {key: value for key, value in state.items() if key != "contents"}
    kept["requests"] = [
        {key: request[key] for key in request if key not in STORED_DIFFERENTLY}
        for request in state["requests"]
    ]
    return kept
