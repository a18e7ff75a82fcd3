"""``minimal-vllm ablate``: its output, its files and its errors."""

import json
import subprocess
import sys
from collections import Counter

import pytest
from click.testing import CliRunner

from minimal_vllm.cli.main import main
from minimal_vllm.trace.step_record import RequestRecord, StepRecord
from minimal_vllm_lab.ablate import simulated
from minimal_vllm_lab.trace.reader import open_trace

SIMULATED = ["--simulate", "--model=qwen3-0.6b", "--max-model-len=2048", "--num-prompts=20"]
TINY = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 64,
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "dtype": "float32",
}


def run(*arguments):
    return CliRunner().invoke(main, ["ablate", *arguments])


def lines(*arguments):
    finished = run(*arguments)
    assert finished.exit_code == 0, finished.output
    return finished.stdout.splitlines()


def test_help_imports_no_torch():
    program = (
        "import sys\nfrom minimal_vllm.cli.main import main\n"
        "main(['ablate', '--help'], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_a_line_for_each_idea_and_the_same_numbers_in_the_file(tmp_path):
    file = tmp_path / "a.json"
    *printed, written = lines(*SIMULATED, f"--json={file}")
    assert max(map(len, printed)) <= 80
    between = printed.index("")
    (head, *rows), (second_head, *second_rows) = printed[:between], printed[between + 1 :]
    assert head.split()[:2] == ["without", "tokens/s"]
    assert second_head.split()[:2] == ["without", "running"]
    names = [row.split("  ")[0] for row in rows]
    assert [row.split("  ")[0] for row in second_rows] == names
    assert names[0] == "all on"
    assert set(names) == {
        *("all on", "continuous-batching", "paging", "prefix-caching", "chunked-prefill"),
        *("preemption", "lru"),
    }
    assert written == f"Written to {file}"
    found = json.loads(file.read_text())
    assert [each["idea"] for each in found["results"]] == names
    assert f"{found['results'][0]['output_throughput']:,.0f}" in rows[0]
    assert found["config"]["engine"]["num_gpu_blocks_override"] > 1000


def test_what_was_measured_is_in_the_file_when_the_rest_is_interrupted(tmp_path, monkeypatch):
    measure, names = simulated.run_simulated, iter(range(3))

    def interrupted(*arguments):
        if next(names) == 2:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(simulated, "run_simulated", interrupted)
    assert run(*SIMULATED, f"--json={tmp_path}/a.json").exit_code != 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert [each["idea"] for each in found["results"]] == ["all on", "continuous-batching"]


def test_a_study_of_one_idea_is_drawn(tmp_path):
    picture = tmp_path / "a.svg"
    assert len(lines(*SIMULATED, "--without=paging", f"--plot={picture}")) == 7
    assert "no paging" in picture.read_text()


def test_speculation_is_studied_in_a_simulation():
    guessing = '--speculative-config={"method": "ngram", "num_speculative_tokens": 4}'
    _, on, off, *_ = lines(*SIMULATED, guessing, "--acceptance-rate=0.9", "--without=speculation")
    assert (on.split()[:2], off.split()[0]) == (["all", "on"], "speculation")
    assert float(off.split()[-2]) < 0.5  # of the throughput


def test_claims_are_printed_beside_the_measurements(tmp_path):
    text = "\n".join(lines("--claims", *SIMULATED[:2], f"--json={tmp_path / 'c.json'}"))
    for words in ("20.4 %", "36.9 times", "6.4 times", "Orca (Max)", "no prefix caching"):
        assert words in text
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["memory"]["results"][1]["system"] == "Orca (Max)"
    assert found["memory"]["config"]["engine"]["scheduler"] is None


def test_a_shape_with_random_weights_runs_on_this_machine(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    engine = ["--load-format=dummy", "--skip-tokenizer-init", "--device=cpu"]
    traffic = ["--num-prompts=4", "--input-len=8", "--output-len=4", "--request-rate=500"]
    told = lines(
        f"--model={tmp_path}", *engine, *traffic, "--num-gpu-blocks-override=8", "--without=lru"
    )
    names = ["without", "all on", "lru"]
    assert [line.split("  ")[0] for line in told] == [*names, "", *names]


def check_traces(folder, *, num_requests):
    """Check that there are two traces with all requests, which start at the first step."""
    names = {"a-all-on.jsonl": "lru", "a-without-lru.jsonl": "fifo"}
    assert {path.name for path in folder.glob("*.jsonl")} == names.keys()
    for name, policy in names.items():
        with open_trace(folder / name) as (header, lines):
            assert header.engine.eviction_policy == policy
            kinds = Counter(type(line) for line in lines)
        assert kinds.keys() == {RequestRecord, StepRecord}
        assert kinds[RequestRecord] == num_requests
        assert kinds[StepRecord] > 1


def test_a_trace_is_written_of_each_variant_of_the_real_engine(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    engine = ["--load-format=dummy", "--skip-tokenizer-init", "--device=cpu"]
    traffic = ["--num-prompts=4", "--input-len=8", "--output-len=4", "--request-rate=500"]
    traced = ["--without=lru", "--repeats=2", f"--trace={tmp_path}/a.jsonl"]
    lines(f"--model={tmp_path}", *engine, *traffic, "--num-gpu-blocks-override=8", *traced)
    check_traces(tmp_path, num_requests=4)


def test_a_trace_is_written_of_each_variant_of_a_simulation(tmp_path):
    lines(*SIMULATED, "--without=lru", f"--trace={tmp_path}/a.jsonl")
    check_traces(tmp_path, num_requests=20)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--without=magic"], "'magic' is not one of"),
        (["--gpu=h100"], "--gpu needs --simulate"),
        (["--simulate", "--device=cpu"], "--device has no effect on a simulation"),
        (["--acceptance-rate=0.5"], "--acceptance-rate needs --simulate"),
        ([*SIMULATED, "--acceptance-rate=0.5"], "needs --speculative-config"),
        (["--cpu-time"], "--cpu-time needs --device cpu"),
        (["--claims", "--num-prompts=3"], "--num-prompts can't be used with --claims"),
        (["--claims", "--plot=x.svg"], "can't be used with --claims"),
        (["--claims", "--trace=x.jsonl"], "can't be used with --claims"),
        ([*SIMULATED, "--trace=/nowhere/a.jsonl"], "No such file or directory"),
        (["--trace-max-mb=5"], "--trace-max-mb needs --trace"),
        (["--workload=latency1", "--input-len=3"], "--input-len needs --workload synthetic"),
        (["--model=qwen3-8b"], "run it with --load-format dummy, or --simulate it"),
        ([*SIMULATED, "--without=cuda-graphs"], "cuda-graphs is not on here"),
        ([*SIMULATED, "--plot=/nowhere/a.svg"], "its folder does not exist"),
        ([*SIMULATED, "--plot=a.xyz"], "suffix must be one of"),
    ],
)
def test_options_without_effect_and_impossible_variants_are_rejected(arguments, complaint):
    finished = run(*arguments)
    assert finished.exit_code == 2
    assert complaint in " ".join(finished.stderr.split())
