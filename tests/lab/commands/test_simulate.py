"""``minimal-vllm simulate``: its options, its output and its errors."""

import json
import subprocess
import sys
from dataclasses import fields
from io import StringIO

import pytest
from click.testing import CliRunner

from minimal_vllm.cli.main import main
from minimal_vllm.cli.options import FieldOption
from minimal_vllm.trace.step_record import RequestRecord, StepRecord
from minimal_vllm_lab.commands.simulate import simulate
from minimal_vllm_lab.sim.config import (
    ENGINE_OPTIONS,
    Achieved,
    FleetConfig,
    GuessingConfig,
    SyntheticConfig,
    TrafficConfig,
)
from minimal_vllm_lab.trace.perfetto import export_perfetto
from minimal_vllm_lab.trace.reader import open_trace

FEW = ["--model=qwen3-0.6b", "--num-prompts=20", "--output-len=20"]


def run(*arguments):
    return CliRunner().invoke(main, ["simulate", *arguments])


def result(*arguments):
    finished = run("--json", *arguments)
    assert finished.exit_code == 0, finished.output
    return json.loads(finished.output)


def test_every_setting_is_on_the_command_line_and_explains_itself():
    owners = (FleetConfig, Achieved, TrafficConfig, SyntheticConfig, GuessingConfig)
    mine = {param.name: param for param in simulate.params if isinstance(param, FieldOption)}
    settings = {field.name for owner in owners for field in fields(owner)}
    assert mine.keys() == settings | ENGINE_OPTIONS
    assert all(param.help for param in mine.values())
    assert mine["seed"].owner is TrafficConfig


def test_help_imports_neither_torch_nor_numpy():
    program = (
        "import sys\nfrom minimal_vllm.cli.main import main\n"
        "main(['simulate', '--help'], standalone_mode=False)\n"
        "sys.exit(bool({'torch', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_a_run_reports_the_fields_of_vllm_s_benchmark():
    found = result(*FEW, "--request-rate=10", "--slo=ttft:1000")
    assert (found["completed"], found["request_rate"]) == (20, 10)
    for name in ("request_throughput", "request_goodput", "output_throughput", "duration"):
        assert found[name] > 0
    for metric in ("ttft", "tpot", "itl", "e2el"):
        assert found[f"median_{metric}_ms"] <= found[f"p99_{metric}_ms"]


def test_without_an_objective_no_goodput_is_reported():
    found = result(*FEW)
    assert found["request_goodput"] is found["slo_attainment"] is found["request_rate"] is None
    text = run(*FEW).output
    assert "goodput" not in text
    assert "request_throughput" in text


def test_the_built_in_model_is_the_default():
    assert result("--workload=latency1")["completed"] == 1


def test_a_sweep_compares_all_combinations():
    found = result(*FEW, "--sweep=gpu=h200,l4", "--sweep=kv-cache-dtype=auto,fp8")
    assert [(each["gpu"], each["kv_cache_dtype"]) for each in found] == [
        ("h200", "auto"),
        ("h200", "fp8"),
        ("l4", "auto"),
        ("l4", "fp8"),
    ]
    assert found[0]["output_throughput"] > found[2]["output_throughput"]
    head, *rows = run(*FEW, "--sweep=gpu=h200,l4").output.splitlines()
    assert head.split()[:2] == ["gpu", "blocks"]
    assert [row.split()[0] for row in rows] == ["h200", "l4"]


def test_a_swept_column_is_shown_only_once():
    head = run(*FEW, "--sweep=request-rate=5,10").output.splitlines()[0]
    assert head.split().count("request-rate") == 1
    assert "rate" not in head.split()


def test_a_variant_that_does_not_fit_is_reported_and_the_others_are_shown():
    arguments = [*FEW, "--model=qwen3-32b", "--sweep=gpu=h200,l4"]
    fits, fails = result(*arguments)
    assert fits["completed"] == 20
    assert fails["gpu"] == "l4"
    assert "no memory is left" in fails["error"]
    assert "gpu=l4: no memory is left" in run(*arguments).output


def test_the_highest_rate_within_an_objective_is_found():
    arguments = ["--model=qwen3-8b", "--gpu=l4", "--num-prompts=20", "--output-len=20"]
    found = result(*arguments, "--find-rate", "--slo=ttft:5000", "--slo-attainment=0.9")
    assert found["slo_attainment"] >= 0.9
    assert found["request_rate"] > 0.1


def test_a_comparison_is_drawn(tmp_path):
    path = tmp_path / "comparison.png"
    sweeps = ["--sweep=routing=round-robin,least-loaded", "--sweep=replicas=1,2"]
    assert run(*FEW, *sweeps, f"--plot={path}").exit_code == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_trace_records_every_step_in_simulated_time(tmp_path):
    path = tmp_path / "trace.jsonl"
    arguments = [*FEW, "--request-rate=10"]
    with_trace = run("--json", *arguments, f"--trace={path}")
    assert with_trace.stderr == ""
    assert with_trace.stdout == run("--json", *arguments).stdout
    found = json.loads(with_trace.stdout)
    with open_trace(path) as (header, lines):
        records = list(lines)
    assert (header.engine.model, header.engine.device) == ("qwen3-0.6b", "h200 (simulated)")
    assert (header.engine.num_blocks, header.started) == (found["num_gpu_blocks"], 0)
    steps = [record for record in records if isinstance(record, StepRecord)]
    assert [step.step for step in steps] == list(range(found["num_steps"]))
    last = steps[-1]
    ended = last.started + last.schedule_seconds + last.run_seconds + last.update_seconds
    assert ended == pytest.approx(found["duration"])
    assert export_perfetto(header, records, StringIO()) > found["num_steps"]


def test_a_trace_records_the_first_replica_and_says_so(tmp_path):
    path = tmp_path / "trace.jsonl"
    finished = run(*FEW, "--replicas=2", f"--trace={path}")
    assert finished.stderr == f"{path} will record the first of 2 replicas\n"
    with open_trace(path) as (_, lines):
        arrivals = [line.arrival for line in lines if isinstance(line, RequestRecord)]
    assert arrivals == list(range(1, 21, 2))  # requests take turns


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--find-rate"], "--find-rate needs --slo"),
        (["--find-rate", "--slo=ttft:9", "--request-rate=3"], "leave out"),
        (["--slo=fast"], "ttft:500,tpot:50"),
        (["--plot=a.png"], "--plot needs --sweep"),
        (["--trace=a.jsonl", "--sweep=gpu=h200,l4"], "--trace records one simulation"),
        (["--trace=a.jsonl", "--find-rate", "--slo=ttft:9"], "--trace records one simulation"),
        (["--trace-max-mb=5", "--sweep=gpu=h200,l4"], "--trace-max-mb needs --trace"),
        (["--sweep=device=cpu,cuda"], "--device"),
        (["--sweep=gpu=h200,h9000"], "gpu"),
        (["--workload=mixed256", "--input-len=3"], "--input-len"),
        (["--cost-model=a.json", "--matmul-fraction=0.5"], "--matmul-fraction"),
        (["--workload=/nowhere.jsonl"], "nowhere.jsonl"),
        (["--model=/nowhere"], "not a local folder"),
        (["--model=no/such"], "; the simulator's presets are qwen3-0.6b, qwen3-1.7b"),
        (["--gpu=cray"], "cray"),
        (["--range-ratio=0.5"], "uniform"),
        (["--bandwidth-fraction=1.5"], "bandwidth_fraction"),
    ],
)
def test_a_mistake_is_one_clear_line(arguments, complaint):
    finished = run(*arguments)
    assert finished.exit_code == 2
    assert complaint in finished.output
    assert "Traceback" not in finished.output
