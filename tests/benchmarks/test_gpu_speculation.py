"""The model counts, and its guesses are as good as they should be; on a CPU, without times."""

import json

import pytest

from benchmarks import gpu_speculation
from benchmarks.counting import Counting, last_is_right, let_count
from benchmarks.gpu_speculation import measure_costs, measure_files, measure_guessing
from minimal_vllm import LLM

TINY = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 4096,
    "hidden_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 64,
    "max_position_embeddings": 4096,
    "dtype": "float32",
}


@pytest.fixture
def counting_llm(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_speculation, "PROMPT_LENGTH", 20)
    (tmp_path / "config.json").write_text(json.dumps(TINY))

    def make(**options):
        llm = LLM(str(tmp_path), load_format="dummy", skip_tokenizer_init=True, device="cpu",
                  num_gpu_blocks_override=300, max_model_len=2000, **options)  # fmt: skip
        let_count(llm.built.model.decoder)
        return llm

    yield make
    Counting.right, Counting.most = 1.0, gpu_speculation.MAX_GUESSES


GUESSING = {"method": "benchmarks.counting:Counting", "num_speculative_tokens": 5}


def test_as_many_guesses_are_computed_as_are_to_be_measured(counting_llm):
    rows = measure_costs(counting_llm(speculative_config=GUESSING), [1, 2], 4)
    assert [(row["requests"], row["guesses"]) for row in rows] == [
        (requests, guesses) for requests in (1, 2) for guesses in range(6)
    ]
    assert all(row["are_right"] for row in rows)
    assert [row["tokens_per_step"] for row in rows[:6]] == [1, 2, 3, 4, 5, 6]


def test_guesses_are_right_as_often_as_they_should_be(counting_llm):
    llm, plain = counting_llm(speculative_config=GUESSING), counting_llm()
    (row,) = measure_guessing(llm, plain, [1], 60, 0.8, 4)
    assert row["plain"]["are_right"]
    assert row["guessing"]["are_right"]
    assert row["plain"]["tokens_per_step"] == 1
    share = sum(last_is_right(0, token, 0.8) for token in range(5000)) / 5000
    assert share == pytest.approx(0.8, abs=0.02)


def test_lookup_guesses_in_the_text_of_a_file(counting_llm, tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_text("The captain said no, and looked at the sea. " * 30)
    monkeypatch.setattr(gpu_speculation, "FILES", {"text": path})
    llm, plain = counting_llm(speculative_config=GUESSING), counting_llm()
    (row,) = measure_files(llm, plain)
    assert row["guessing"]["are_right"]
    assert row["guessing"]["tokens_per_step"] > 1.5
