import json

import pytest
import torch
from checkpoints import FAMILIES, random_weights, write_checkpoint
from click.testing import CliRunner
from gguf import GGMLQuantizationType
from gguf_files import write_gguf

from minimal_vllm.cache.memory import DeviceMemory
from minimal_vllm.cli.info import _size
from minimal_vllm.cli.main import main


def info(*arguments):
    result = CliRunner().invoke(main, ["info", *map(str, arguments)])
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("family", ["llama", "qwen3-bias-layer-types"])
def test_it_describes_the_model_without_its_weights(tmp_path, family):
    config = FAMILIES[family]
    model = write_checkpoint(tmp_path / "model", config)
    (model / "model.safetensors").unlink()
    found = json.loads(info(model, "--json"))
    num_parameters = sum(weight.numel() for weight in random_weights(config).values())
    assert found["architecture"] == config["architectures"][0]
    assert found["num_layers"] == 3
    assert found["num_sliding_layers"] == config.get("layer_types", []).count("sliding_attention")
    assert found["num_parameters"] == num_parameters
    assert found["weight_bytes"]["float32"] == 4 * num_parameters
    assert found["max_model_len"] == 512
    assert found["chat_template"] is True
    assert found["devices"][0]["device"] == "cpu"


def test_it_says_what_sets_a_model_apart_from_llama(tmp_path):
    model = write_checkpoint(tmp_path / "model", FAMILIES["gemma2"])
    found = json.loads(info(model, "--json"))["traits"]
    assert found["Windows"] == "7 tokens in 2 layers"
    assert found["Softcap"] == "2 for attention scores, 5 for logits"
    assert found["Norms"] == "before and after each sub-layer"
    assert found["Multipliers"].startswith("embeddings times 5.65685, attention scores times 0.2")
    shown = info(model)
    assert all(f"{label:14}{text}" in shown for label, text in found.items())


def test_it_says_how_many_experts_compute_a_token(tmp_path):
    config = FAMILIES["qwen3-moe-some-dense"]
    write_checkpoint(tmp_path, config)
    # The one sparse layer leaves 3 of its 6 experts idle, each of 3 matrices of 20 by 32.
    total = sum(weight.numel() for weight in random_weights(config).values())
    active = total - 3 * 3 * 20 * 32
    expected = f"6 in 1 of 4 layers, 3 for each token; {active:,} parameters are active"
    assert expected in info(tmp_path)
    found = json.loads(info(tmp_path, "--json"))
    assert found["weight_bytes"]["bfloat16"] == 2 * total
    assert found["active_weight_bytes"]["bfloat16"] == 2 * active
    assert f"For one token {_size(4 * active)} in float32" in info(tmp_path)


def test_a_token_is_computed_with_all_weights_of_a_dense_model(tmp_path):
    write_checkpoint(tmp_path, FAMILIES["llama"])
    found = json.loads(info(tmp_path, "--json"))
    assert found["active_weight_bytes"] == found["weight_bytes"]
    assert "For one token" not in info(tmp_path)


def test_it_says_what_each_of_several_processes_holds(tmp_path):
    model = write_checkpoint(tmp_path, FAMILIES["llama"])
    whole, part = (
        json.loads(info(model, "--json", *options))["devices"][0]
        for options in ([], ["--tensor-parallel-size=2"])
    )
    norms = 4 * 7 * 32  # which both hold
    assert part["weights"] == (whole["weights"] - norms) / 2 + norms
    assert 2 * part["kv_per_token"] == whole["kv_per_token"]
    assert part["memory"] == whole["memory"] // 2
    shown = info(model, "--tensor-parallel-size=2")
    assert "On cpu, in 2 processes, each with" in shown
    assert f"Weights       {_size(part['weights'])} in each" in shown


def test_it_describes_a_gguf_file(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, FAMILIES["llama"], GGMLQuantizationType.Q4_1)
    found = json.loads(info(path, "--json"))
    assert found["path"] == str(path)
    assert found["format"] == "GGUF (Q4_1, F32)"
    assert found["architecture"] == "LlamaForCausalLM"
    assert found["chat_template"] is True
    assert "GGUF (Q4_1, F32)" in info(tmp_path)


def test_what_fits_is_what_the_engine_would_allocate(model, monkeypatch):
    """Weights and activations count towards this process's half of the memory."""
    memory = DeviceMemory("cpu", total=64 << 20, free=60 << 20, used_by_process=1 << 20)
    monkeypatch.setattr("minimal_vllm.cache.memory.measure_memory", lambda *_: memory)
    monkeypatch.setattr("minimal_vllm.engine.sizing.estimate_activations", lambda *_: 7 << 20)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (cpu,) = json.loads(info(model, "--json", "--dtype=bfloat16"))["devices"]
    kv_per_token = 2 * 3 * 2 * 8 * 2  # keys and values, layers, KV heads, head_dim, bytes
    budget = (32 << 20) - (1 << 20) - cpu["weights"] - (7 << 20)
    assert cpu["kv_per_token"] == kv_per_token
    assert cpu["kv_per_block"] == 16 * kv_per_token
    assert cpu["num_blocks"] == budget // (16 * kv_per_token)
    assert cpu["num_full_requests"] == cpu["num_blocks"] // 32  # blocks of 512 tokens


def test_layers_with_a_window_are_counted_as_what_they_hold(tmp_path):
    """One layer of 3 keeps all of 512 tokens, 32 blocks; a window of 6 tokens at most 2 blocks."""
    model = write_checkpoint(tmp_path / "model", FAMILIES["qwen3-bias-layer-types"])
    (cpu, *_) = json.loads(info(model, "--json"))["devices"]
    assert cpu["windows"] == [None, 6, 6]
    assert cpu["kv_per_block"] == 16 * cpu["kv_per_token"] // 3
    assert cpu["num_full_requests"] == cpu["num_blocks"] // (32 + 2 + 2)
    assert cpu["num_tokens"] == cpu["num_blocks"] * 32 // (32 + 2 + 2) * 16
    assert "1 without a window, 2 with a window of 6 tokens" in info(model)


def test_a_model_that_does_not_fit_says_so(model):
    assert "not at all" in info(model, "--gpu-memory-utilization=1e-6")


def test_options_change_the_answer(model):
    text = info(model, "--block-size=32", "--max-model-len=100", "--attention-backend=reference")
    assert "a block of 32 tokens" in text
    assert "requests of 100 tokens" in text
    assert "with reference attention" in text


def test_a_model_without_a_tokenizer_is_described_all_the_same(tmp_path):
    model = write_checkpoint(tmp_path / "model")
    (model / "tokenizer.json").unlink()
    assert json.loads(info(model, "--json"))["chat_template"] is False


def test_a_folder_that_is_no_model_is_one_line(tmp_path):
    result = CliRunner().invoke(main, ["info", str(tmp_path)])
    assert result.exit_code == 2
    assert "has no config.json and no .gguf file: it is not a checkpoint" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(384, "384 B"), (6144, "6 KiB"), (1_270_000, "1.21 MiB"), (80 << 30, "80 GiB")],
)
def test_sizes_are_readable(num_bytes, text):
    assert _size(num_bytes) == text
