import pytest
from pydantic import ValidationError

from minimal_vllm.config import EngineConfig
from minimal_vllm_lab.sim.config import FleetConfig, SimulationConfig, TrafficConfig
from minimal_vllm_lab.sim.sweep import override, parse_sweep, variants

CONFIG = SimulationConfig(EngineConfig(model="qwen3-8b"))


def test_options_are_named_as_on_the_command_line():
    assert parse_sweep("eviction-policy=lru,lfu") == ("eviction_policy", ["lru", "lfu"])
    assert parse_sweep("--gpu=h100") == ("gpu", ["h100"])


@pytest.mark.parametrize("text", ["", "gpu", "gpu=", "gpu=,"])
def test_text_that_is_no_sweep_is_rejected(text):
    with pytest.raises(ValueError, match="gpu=h100,h200"):
        parse_sweep(text)


def test_there_is_a_variant_for_each_combination():
    found = [
        (choice, config.fleet.replicas, config.engine.num_gpu_blocks_override)
        for choice, config in variants(
            CONFIG, [("replicas", ["1", "2"]), ("num_gpu_blocks_override", ["50", "60"])]
        )
    ]
    assert [(replicas, blocks) for _, replicas, blocks in found] == [
        (1, 50),
        (1, 60),
        (2, 50),
        (2, 60),
    ]
    assert found[0][0] == {"replicas": "1", "num_gpu_blocks_override": "50"}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("max_num_seqs", "engine"),
        ("gpu", "fleet"),
        ("matmul_fraction", "achieved"),
        ("seed", "traffic"),
        ("input_len", "synthetic"),
    ],
)
def test_options_of_every_section_can_be_swept(name, part):
    value = {"gpu": "l4", "matmul_fraction": "0.5"}.get(name, "7")
    changed = getattr(getattr(override(CONFIG, {name: value}), part), name)
    assert str(changed) == value


def test_a_value_out_of_range_is_rejected():
    with pytest.raises(ValidationError, match="replicas"):
        override(CONFIG, {"replicas": "0"})


@pytest.mark.parametrize("name", ["velocity", "device", "tokenizer"])
def test_an_option_that_does_not_exist_or_has_no_effect_is_rejected(name):
    with pytest.raises(ValueError, match=f"--{name}"):
        override(CONFIG, {name: "1"})


def test_lengths_of_a_workload_that_has_its_own_cannot_be_swept():
    config = SimulationConfig(CONFIG.engine, traffic=TrafficConfig(workload="mixed256"))
    with pytest.raises(ValueError, match="--input-len: only applies"):
        override(config, {"input_len": "3"})


def test_fractions_of_a_datasheet_that_is_not_used_cannot_be_swept():
    config = SimulationConfig(CONFIG.engine, FleetConfig(cost_model="costs.json"))
    with pytest.raises(ValueError, match="--matmul-fraction: has no effect"):
        override(config, {"matmul_fraction": "0.5"})
