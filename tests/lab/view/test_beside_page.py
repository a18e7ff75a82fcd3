"""Two live engines side by side: both get the same requests, and one set of controls moves both."""

import pytest
from click.testing import CliRunner

from minimal_vllm.cli.main import main
from tests.lab.view.browser import page_at, until
from tests.lab.view.test_live_page import demo

LOADED = "window.pair !== undefined"
WITHOUT_CACHE = "--beside=enable-prefix-caching=false"
IDS = """pair.windows.map(({ view }) => {
  const { state } = view.player;
  const unfinished = [...state.inOrder("running"), ...state.inOrder("waiting")];
  return [...state.ended, ...unfinished].map((each) => each.id).sort();
})"""


@pytest.fixture(scope="module")
def url():
    with demo("--steps-per-second=16", "--requests-per-100-steps=20", WITHOUT_CACHE) as url:
        yield url


@pytest.mark.browser
def test_both_engines_get_the_same_requests(chromium, url):
    with page_at(chromium, url, ready=LOADED) as page:
        until(page, "pair.windows.every(({ view }) => view.player.state.numEnded > 2)")
        page.click("#play")
        until(page, "pair.windows.every(({ view }) => view.player.paused)")
        first, second = page.evaluate(IDS)
        assert first == second
        cached = "pair.windows.map(({ view }) => view.player.state.prefixHits > 0)"
        assert page.evaluate(cached) == [True, False]
        names = page.eval_on_selector_all("#scores th", "cells => cells.map((c) => c.innerText)")
        assert names == ["as given", "enable_prefix_caching=false"]


@pytest.mark.browser
def test_one_set_of_controls_moves_both(chromium, url):
    steps = "pair.windows.map(({ view }) => view.player.history.head.step)"
    with page_at(chromium, url, ready=LOADED) as page:
        until(page, "pair.paused || (pair.play(), false)")
        until(page, "pair.windows.every(({ view }) => view.player.paused)")
        before = page.evaluate(steps)
        page.keyboard.press("ArrowRight")
        until(page, f"{steps}.join() === '{before[0] + 1},{before[1] + 1}'")
        page.keyboard.press("/")
        page.keyboard.type("The old captain")
        assert page.input_value("#prompt") == "The old captain"
        page.keyboard.press("Enter")
        mine = "[...view.player.history.head.requests.keys()].some((id) => id.startsWith('you-'))"
        until(page, f"pair.windows.every(({{ view }}) => {mine})")
        page.click("#play")
        until(page, "pair.windows.every(({ view }) => !view.player.paused)")
        page.keyboard.press("t")
        documents = "[document, ...pair.windows.map((each) => each.document)]"
        themes = page.evaluate(f"{documents}.map((each) => each.documentElement.dataset.theme)")
        assert len(set(themes)) == 1


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ('speculative-config={"method": "eagle3"}', "speculative_config", {"method": "eagle3"}),
        ("max-num-batched-tokens=2k", "max_num_batched_tokens", 2000),
        ("enable-prefix-caching=false", "enable_prefix_caching", False),
        ("scheduler=my.py:Mine", "scheduler", "my.py:Mine"),
    ],
)
def test_values_are_read_as_those_of_the_first_engine(monkeypatch, text, name, value):
    def made(config, model, writers, view, **options):
        raise ValueError(f"made with {options[name]!r}")

    monkeypatch.setattr("minimal_vllm.server.run.make_service", made)
    result = CliRunner().invoke(main, ["view", "--no-browser", "--beside", text])
    assert f"made with {value!r}" in str(result.exception) + result.output


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--beside", "frob=1"], "such as enable-prefix-caching=false, not 'frob=1'"),
        (["--beside", "scheduler"], "such as enable-prefix-caching=false, not 'scheduler'"),
        (["--beside", "max_num_seqs=2", "--trace", "t.jsonl"], "leave out --beside"),
        (["--beside", "speculative-config=ngram"], "'ngram' is not a JSON object"),
        (["--beside", "max-num-seqs=few"], "'few' is not a valid integer"),
    ],
)
def test_a_wrong_second_engine_is_one_clear_line(options, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["view", "--no-browser", *options])
    assert result.exit_code == 2
    assert complaint in " ".join(result.output.split())
