"""Guessed, right and wrong tokens are told apart on the page of a trace."""

import re

import pytest

from minimal_vllm.trace.step_record import StepRecord
from minimal_vllm_lab.trace.reader import open_trace
from tests.lab.view.browser import page_at, stop, until

pytestmark = pytest.mark.browser

COLORS = """async () => {
  const { colorOf, wordOf } = await import("/view/page/theme.js");
  const { batch, digest, player: { state } } = view;
  const image = batch.context.getImageData(0, 0, batch.canvas.width, batch.canvas.height);
  const pixels = new Uint32Array(image.data.buffer);
  return digest.rows.flatMap((row) => row.cells
    .filter((cell) => cell.step === state.step && cell.kind === "decode" && cell.guesses)
    .map((cell) => {
      const each = (batch.columnWidth - 2) / cell.count;
      const names = [...Array(cell.count).keys()].map((i) => {
        const x = Math.floor(batch.x(cell.step) + 1 + (i + 0.4) * each);
        const word = pixels[Math.floor(batch.y(row.lane) + batch.rowHeight / 2) * image.width + x];
        return ["full", "bright", "pale"]
          .find((name) => wordOf(colorOf(row.arrival, name)) === word) ?? "none";
      });
      return { arrival: row.arrival, names, guesses: cell.guesses, right: cell.right };
    }));
}"""


CELL = """async (step) => {
  const { narrateCell } = await import("/view/page/narrate.js");
  const isWanted = (cell) => cell.step === step && cell.guesses > 1;
  const row = view.digest.rows.find((row) => row.cells.some(isWanted));
  const cell = row.cells.find((each) => each.step === step);
  return { ...cell, told: narrateCell({ row, step }) };
}"""


@pytest.fixture(scope="module")
def page(chromium, serve_trace, guessed_trace):
    with page_at(chromium, serve_trace(guessed_trace), "willReadFrequently") as page:
        stop(page)
        yield page


@pytest.fixture(scope="module")
def steps(guessed_trace):
    with open_trace(guessed_trace) as (_, lines):
        return [line for line in lines if isinstance(line, StepRecord)]


def seek(page, step):
    page.evaluate(f"view.player.seekStep({step})")
    until(page, "!view.stale && !view.wordsAreStale")


def test_the_batch_shows_known_right_and_wrong_tokens_in_different_colors(page, steps):
    kinds = set()
    for step in range(3, 23):
        seek(page, step)
        for cell in page.evaluate(COLORS):
            wrong = cell["guesses"] - cell["right"]
            assert cell["names"] == ["full"] + ["bright"] * cell["right"] + ["pale"] * wrong
            kinds.update(cell["names"])
    assert kinds == {"full", "bright", "pale"}


def test_the_story_and_the_legend_tell_how_many_were_right(page, steps):
    record = next(one for one in steps if sum(each.num_guesses for each in one.scheduled) > 4)
    guesses = sum(each.num_guesses for each in record.scheduled)
    right = sum(len(each.sampled_tokens) - 1 for each in record.scheduled if each.num_guesses)
    seek(page, record.step)
    verdict = f"{right} of them right" if 0 < right < guesses else "all right" if right else "wrong"
    assert f"{guesses} tokens were guesses, {verdict}." in page.inner_text("#story")
    cell = page.evaluate(CELL, record.step)
    kind = "of its prompt" if cell["kind"] == "prompt" else "decode of one token"
    assert kind in cell["told"]
    assert f", and {cell['guesses']} guesses: {cell['right']} right" in cell["told"]
    assert page.is_visible("text=a right guess and a wrong one")


def test_a_request_knows_its_share_and_marks_its_right_guesses(page, steps):
    last = steps[-1]
    (entry, *_) = last.scheduled
    seek(page, last.step - 1)
    arrival = page.evaluate("view.player.state.requests.values().next().value.arrival")
    page.evaluate(f"view.select({{ arrival: {arrival}, block: null }})")
    until(page, "!view.stale && !view.wordsAreStale")
    parts = [
        each
        for one in steps[:-1]
        for each in one.scheduled
        if each.request_id == entry.request_id and each.num_guesses
    ]
    right = sum(len(each.sampled_tokens) - 1 for each in parts)
    expected = f"{right} of {sum(each.num_guesses for each in parts)} guesses right"
    assert expected in page.inner_text("#inspector .summary")
    marked = page.locator("#inspector .token.guessed")
    assert 0 < marked.count() == right
    assert re.fullmatch(r"token \d+, a right guess", marked.first.get_attribute("title"))


def test_without_guesses_nothing_speaks_of_them(chromium, replay_url):
    with page_at(chromium, replay_url) as page:
        stop(page)
        page.evaluate("view.player.moveTo(view.player.history.end)")
        until(page, "!view.stale && !view.wordsAreStale")
        assert not page.is_visible("text=a right guess and a wrong one")
        assert "guess" not in page.inner_text("body")
