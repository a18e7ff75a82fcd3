"""The real engine serves an ablation's workload, whatever form the model has."""

import json
from dataclasses import replace

import pytest

from minimal_vllm.config import EngineConfig
from minimal_vllm.demo import DEMO_MODEL_DIR
from minimal_vllm_lab.ablate.clock import CpuClock, WallClock
from minimal_vllm_lab.ablate.ideas import IDEAS
from minimal_vllm_lab.ablate.real import really_run, settle
from minimal_vllm_lab.ablate.study import config_without
from minimal_vllm_lab.sim import presets
from minimal_vllm_lab.sim.config import SimulationConfig, SyntheticConfig, TrafficConfig

SHAPE = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 64,
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "dtype": "float32",
}
DUMMY = {
    "load_format": "dummy",
    "skip_tokenizer_init": True,
    "device": "cpu",
    "num_gpu_blocks_override": 16,
}


def measure(config, clock=WallClock):
    return really_run(config, clock())


def workload(engine, **synthetic):
    synthetic = {"num_prompts": 6, "input_len": 20, "output_len": 8, "prefix_len": 16} | synthetic
    return SimulationConfig(
        engine,
        traffic=TrafficConfig(request_rate=500.0),
        synthetic=SyntheticConfig(**synthetic),
    )


@pytest.fixture
def folder(tmp_path):
    """A model's folder with only its shape."""
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    return str(tmp_path)


@pytest.mark.parametrize("name", [None, "paging", "continuous-batching", "preemption"])
def test_all_tokens_are_generated_and_all_fields_reported_with_and_without_an_idea(folder, name):
    config = workload(settle(EngineConfig(model=folder, **DUMMY)))
    result = measure(config_without(config, IDEAS[name]) if name else config)
    assert (result["completed"], result["failed"]) == (6, 0)
    assert result["p99_ttft_ms"] >= result["median_ttft_ms"] > 0
    assert result["num_steps"] >= 8
    assert 0 < result["peak_blocks"] <= 16
    assert result["prefix_cache_hit_rate"] >= 0
    assert sum(result["kv_shares"].values()) in (0, pytest.approx(1))


def test_a_heavy_tail_is_cut_at_the_maximum_length(folder):
    config = workload(settle(EngineConfig(model=folder, **DUMMY)), input_len=300, output_len=300)
    assert measure(config)["total_input_tokens"] <= 6 * 127


def test_without_an_idea_everything_else_stays(folder):
    settled = settle(EngineConfig(model=folder, **DUMMY))
    assert settled.num_gpu_blocks_override == 16
    assert (settled.max_model_len, settled.max_num_batched_tokens) == (128, 2048)
    assert (settled.device, settled.async_scheduling) == ("cpu", False)


def test_a_preset_runs_with_random_weights_and_no_others(monkeypatch):
    monkeypatch.setitem(presets.PRESETS, "tiny", SHAPE)
    config = EngineConfig(model="Tiny", **DUMMY)
    assert measure(workload(settle(config)))["completed"] == 6
    with pytest.raises(
        ValueError, match=r"only the shape of .* is known: run it with --load-format dum"
    ):
        settle(replace(config, load_format="auto"))


def test_conversations_are_rejected(folder):
    config = workload(settle(EngineConfig(model=folder, **DUMMY)), num_turns=2)
    with pytest.raises(ValueError, match="leave it at 1"):
        measure(config)


def test_the_built_in_model_needs_nothing():
    config = EngineConfig(model=str(DEMO_MODEL_DIR), device="cpu", num_gpu_blocks_override=130)
    assert measure(workload(settle(config)))["completed"] == 6


def test_with_the_cpu_clock_no_time_is_spent_waiting_for_arrivals():
    config = EngineConfig(model=str(DEMO_MODEL_DIR), device="cpu", num_gpu_blocks_override=130)
    config = replace(workload(settle(config)), traffic=TrafficConfig(request_rate=0.001))
    result = measure(config, CpuClock)  # in real time it would take more than an hour
    assert result["completed"] == 6
    assert result["duration"] > 3600
    assert result["mean_running"] < 0.01
