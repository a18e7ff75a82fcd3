"""The contenders do the same work: on a CPU in float32 their tokens are equal."""

import json

import pytest
from click.testing import CliRunner

from benchmarks import gpu_engines
from benchmarks.contenders import make_jobs
from benchmarks.gpu_contenders import installed
from benchmarks.gpu_engines import Run, compare, plot, run_engine
from benchmarks.models import write_random_model

TINY = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 500,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "max_position_embeddings": 1024,
}
JOBS = make_jobs(4, TINY["vocab_size"], (1, 40), (1, 20), seed=0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    write_random_model(folder, TINY)
    return folder


def test_all_engines_give_the_same_tokens(checkpoint, tmp_path):
    runs = {name: run_engine(name, checkpoint, "cpu", JOBS, 2, 100) for name in installed()}
    assert next(iter(runs)) == "minimal-vllm"
    assert {"transformers, continuous batching", "transformers, generate"} < set(runs)
    scores = compare(runs, JOBS)
    assert [score.same_tokens for score in scores] == [1.0] * len(runs)
    assert all(len(score.seconds) == 2 and min(score.seconds) > 0 for score in scores)
    plot("all", scores, tmp_path / "all.svg")
    assert "<svg" in (tmp_path / "all.svg").read_text()


def test_an_engine_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="nothing-here"):
        run_engine("minimal-vllm", tmp_path / "nothing-here", "cpu", JOBS, 1, 100)


def test_an_engine_that_takes_too_long_is_stopped(checkpoint):
    with pytest.raises(RuntimeError, match="no result within 0 s"):
        run_engine("transformers, generate", checkpoint, "cpu", JOBS, 1, 0.1)


def test_tokens_count_up_to_the_first_difference():
    jobs = make_jobs(2, 100, (5, 5), (4, 4), seed=0)
    ours = Run([2.0], 1.0, [[1, 2, 3, 4], [5, 6, 7, 8]])
    other = Run([3.0], 1.0, [[1, 2, 9, 4], [5, 6, 7, 8]])
    first, second = compare({"ours": ours, "other": other}, jobs)
    assert (first.ours_is_faster_by, first.same_tokens, first.tokens_per_second) == (1, 1, 4)
    assert (second.ours_is_faster_by, second.same_tokens) == (1.5, 6 / 8)


@pytest.mark.gpu
def test_the_command_compares_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setitem(
        gpu_engines.PRESETS,
        "qwen3-0.6b",
        {**TINY, "vocab_size": 10_001, "max_position_embeddings": 5000},
    )
    arguments = ["--num-requests=2", "--workload=prefill64", f"--folder={tmp_path}"]
    outcome = CliRunner().invoke(gpu_engines.main, arguments, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    (path,) = tmp_path.glob("*.json")
    results = json.loads(path.read_text())
    assert results["left_out"] == {}
    assert len(results["scores"]) == len(installed())
