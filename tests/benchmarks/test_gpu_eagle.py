"""The head counts, and is as good as it should be; on a CPU, without times."""

import pytest

from benchmarks import gpu_eagle, gpu_speculation
from benchmarks.counting import let_count, let_head_count
from benchmarks.gpu_eagle import build_with_head, head_of, measure_costs
from benchmarks.gpu_speculation import compare
from tests.benchmarks import test_gpu_speculation

TINY = {**test_gpu_speculation.TINY, "num_hidden_layers": 5}
OPTIONS = {"num_gpu_blocks_override": 300, "max_model_len": 2000}


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    build = gpu_eagle.build
    monkeypatch.setattr(gpu_speculation, "PROMPT_LENGTH", 20)
    monkeypatch.setattr(gpu_eagle, "build", lambda shape, options: build(shape, options, "cpu"))


def test_as_many_guesses_are_computed_as_are_to_be_measured():
    rows = measure_costs(build_with_head(TINY, OPTIONS, 1.0), [2], 4, most=2)
    assert [(row["requests"], row["guesses"]) for row in rows] == [(2, 0), (2, 1), (2, 2)]
    assert all(row["are_right"] for row in rows)
    for row in rows:  # in the step that computes the prompt, a head has no guess yet
        assert row["guesses"] + 0.6 < row["tokens_per_step"] <= row["guesses"] + 1


@pytest.mark.usefixtures("guesses_cost_nothing")
def test_guesses_are_right_as_often_as_they_should_be():
    llm, plain = build_with_head(TINY, OPTIONS, 0.8), gpu_eagle.build(TINY, OPTIONS)
    let_count(plain.built.model.decoder)
    (row,) = compare(llm, plain, [1], 60)
    assert row["plain"]["are_right"]
    assert row["guessing"]["are_right"]
    assert 2 < row["guessing"]["tokens_per_step"] < 6
    let_head_count(head_of(llm), llm.built.model.decoder, 0.0)
    (row,) = compare(llm, plain, [1], 20)
    assert row["guessing"]["are_right"]
    assert row["guessing"]["tokens_per_step"] == 1
