"""A browser to test the view with: Debian's Chromium, driven by Playwright."""

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
def page_at(chromium, url, may_complain_of="nothing", **options):
    """A page of the view, which must not complain of anything else."""
    page = new_page(chromium, **{"viewport": {"width": 1280, "height": 900}, **options})
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(url)
    until(page, "window.view?.player.history != null")
    yield page
    page.close()
    assert [each for each in complaints if may_complain_of not in each] == []


def until(page, condition):
    """Wait until an expression is true in the page, whose policy forbids Playwright's own way."""
    deadline = time.monotonic() + PATIENCE
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, f"waited in vain: {condition}"
        time.sleep(0.02)


def stop(page):
    """Stop a trace, which plays by itself once it has come in, and may have come to its end."""
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
"""The state that the page has rebuilt from the records, in the words of ``/view/state``."""


PIXELS = """() => ["pool", "batch"].map((id) => document.getElementById(id).toDataURL())"""


def pixels(page):
    """The pictures of the pool and of the batch, once they show the present moment."""
    until(page, "!view.stale && !view.wordsAreStale")
    return page.evaluate(PIXELS)


def rebuilt(page):
    """What the page knows of the engine."""
    return page.evaluate(f"({REBUILD})(view.player.history.head)")


def actual(state):
    """The engine's own state, a snapshot as JSON, without what the page keeps in another form."""
    kept = {key: value for key, value in state.items() if key != "contents"}
    kept["requests"] = [
        {key: request[key] for key in request if key not in ("arrived", "params", "block_hashes")}
        for request in state["requests"]
    ]
    return kept
