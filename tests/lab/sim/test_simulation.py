import json
import re
import subprocess
import sys
from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
import torch
from pydantic import ValidationError

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.memory import DeviceMemory
from minimal_vllm.config import EngineConfig
from minimal_vllm.demo import DEMO_MODEL_DIR
from minimal_vllm.engine import sizing
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm_lab.sim.config import (
    FleetConfig,
    SimulationConfig,
    SyntheticConfig,
    TrafficConfig,
)
from minimal_vllm_lab.sim.hardware import CONTEXT_BYTES, GPUS
from minimal_vllm_lab.sim.presets import PRESETS
from minimal_vllm_lab.sim.simulation import make_design, make_jobs, simulate
from tests.lab.sim.simulated import COSTS


def config(model="qwen3-8b", fleet=None, traffic=None, synthetic=None, **engine):
    return SimulationConfig(
        EngineConfig(model=model, **engine),
        FleetConfig(**fleet or {}),
        traffic=TrafficConfig(**traffic or {}),
        synthetic=SyntheticConfig(**synthetic or {}),
    )


def run(config, **options):
    return simulate(make_design(config), config, **options)


def test_the_pool_has_as_many_blocks_as_the_engine_would_fit():
    chosen = config(max_num_seqs=100, block_size=32, gpu_memory_utilization=0.8)
    design = make_design(chosen)
    weights = design.model.num_parameters * 2
    used, total = weights + CONTEXT_BYTES, 141 * 2**30
    memory = DeviceMemory("cuda", total, total - used, used)
    groups = sizing.choose_groups(design.model, design.scheduler_config.max_model_len)
    by_the_engine = sizing.choose_num_blocks(
        chosen.engine, design.model, groups, torch.bfloat16, memory, 8320
    )
    assert design.num_blocks == by_the_engine > 1000
    assert design.scheduler_config.max_num_batched_tokens == 8320


def test_an_fp8_cache_holds_twice_as_much():
    half, whole = (make_design(config(kv_cache_dtype=dtype)) for dtype in ("fp8", "auto"))
    assert half.num_blocks == pytest.approx(2 * whole.num_blocks, abs=1)


def test_a_length_that_the_pool_cannot_hold_is_lowered_as_the_engine_does():
    design = make_design(config(num_gpu_blocks_override=100))
    assert (design.num_blocks, design.scheduler_config.max_model_len) == (100, 1600)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"model": "qwen3-32b", "fleet": {"gpu": "l4"}}, "no memory is left"),
        ({"dtype": "float32"}, "bfloat16"),
        ({"max_model_len": 10**6}, "positions"),
        ({"model": "/nowhere/config.json"}, "can't be read"),
        ({"fleet": {"cost_model": "/nowhere.json"}}, "can't be read"),
    ],
)
def test_an_impossible_choice_is_rejected(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        make_design(config(**options))


@pytest.mark.parametrize(
    ("traffic", "complaint"),
    [
        ({"workload": "chat"}, "synthetic, a file that ends with .jsonl, or one of mixed256"),
        ({"workload": "a.jsonl", "request_rate": 1}, "request_rate"),
        ({"request_rate": 0}, "greater than 0"),
    ],
)
def test_traffic_that_makes_no_sense_is_rejected(traffic, complaint):
    with pytest.raises(ValidationError, match=complaint):
        config(traffic=traffic)


def test_bursts_without_a_rate_are_rejected():
    with pytest.raises(ValueError, match="request_rate"):
        run(config(traffic={"burstiness": 0.5}))


def test_the_gpus_to_choose_from_are_those_of_the_table():
    assert get_args(get_type_hints(FleetConfig)["gpu"]) == tuple(GPUS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_about_as_many_parameters_as_its_name_says(name):
    billions = float(re.search(r"-([\d.]+)b", name)[1])
    found = make_design(config(name, num_gpu_blocks_override=100)).model.num_parameters / 1e9
    assert found == pytest.approx(billions, rel=0.25)


def test_a_config_file_and_its_folder_are_the_same_model():
    folder, file = (
        make_design(config(str(path), num_gpu_blocks_override=200))
        for path in (DEMO_MODEL_DIR, DEMO_MODEL_DIR / "config.json")
    )
    assert folder.model == file.model


def test_the_same_seed_gives_the_same_report():
    chosen = config(traffic={"request_rate": 20}, synthetic={"num_prompts": 50})
    first, again = run(chosen), run(chosen)
    assert first == again
    assert first.completed == 50
    assert run(replace(chosen, traffic=TrafficConfig(request_rate=20, seed=1))) != first


def test_a_fixed_workload_is_served_whole():
    report = run(config(traffic={"workload": "mixed256"}))
    assert (report.total_input_tokens, report.total_output_tokens) == (142_827, 133_966)


def test_fixed_prompts_can_come_one_by_one():
    arrivals = [
        job.arrival for job in make_jobs(config(traffic={"workload": "long32", "request_rate": 2}))
    ]
    assert len(set(arrivals)) == 32
    assert arrivals == sorted(arrivals)


def test_recorded_traffic_is_served(tmp_path):
    path = tmp_path / "traffic.jsonl"
    path.write_text(
        '{"prompt_len": 30, "max_tokens": 4}\n{"arrival": 9, "prompt_len": 3, "max_tokens": 2}\n'
    )
    report = run(config(traffic={"workload": str(path)}))
    assert (report.completed, report.total_output_tokens) == (2, 6)
    assert report.duration > 9


def test_fitted_costs_replace_the_datasheet(tmp_path):
    COSTS.save(tmp_path / "costs.json")
    fleet = {"cost_model": str(tmp_path / "costs.json")}
    assert make_design(config(fleet=fleet)).cost_model == COSTS


def test_each_replica_s_records_are_shown_to_its_own_observers():
    records = [[], []]
    report = run(
        config(fleet={"replicas": 2}, synthetic={"num_prompts": 10}),
        observers_of=lambda index: [records[index].append],
    )
    ended = [len(each.finished) for steps in records for each in steps]
    assert all(records)
    assert sum(ended) == report.completed == 10


def test_a_simulation_needs_no_torch():
    program = (
        "import sys, json\nfrom minimal_vllm.cli.main import main\n"
        "main(['simulate', '--workload=latency1', '--json'], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert json.loads(result.stdout)["completed"] == 1


@pytest.mark.parametrize(("option", "base"), [("scheduler", Scheduler), ("block_pool", BlockPool)])
def test_a_custom_class_is_used_and_every_step_is_planned_in_full(option, base):
    made = []

    class Mine(base):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    options = {"num_gpu_blocks_override": 200, "max_model_len": 2000}
    options["traffic"] = {"request_rate": 20}
    options["synthetic"] = {"num_prompts": 60, "prefix_len": 100, "input_len": 100}
    built_in, mine = run(config(**options)), run(config(**options, **{option: Mine}))
    assert (mine, len(made)) == (built_in, 1)
    assert mine.num_preemptions > 0
