"""--trace, ``trace export`` and ``view`` on the command line."""

import json

import pytest
from click.testing import CliRunner

from minimal_vllm.cli.main import main
from minimal_vllm.trace.step_record import RequestRecord, StepRecord
from minimal_vllm_lab.trace.reader import open_trace


def invoke(*arguments):
    return CliRunner().invoke(main, [str(each) for each in arguments])


def lines_of(path):
    with open_trace(path) as (_, lines):
        return list(lines)


def test_generate_writes_a_trace_of_all_its_steps(run, tmp_path):
    path = tmp_path / "trace.jsonl"
    result = run("generate", "--max-tokens=5", "--ignore-eos", f"--trace={path}", "the")
    assert result.exit_code == 0, result.output
    lines = lines_of(path)
    assert sum(isinstance(line, RequestRecord) for line in lines) == 1
    assert [line.step for line in lines if isinstance(line, StepRecord)] == [0, 1, 2, 3, 4]


def test_chat_writes_each_answer_into_one_trace(tmp_path):
    path = tmp_path / "trace.jsonl"
    arguments = ["chat", "--max-tokens=2", "--num-gpu-blocks-override=64", f"--trace={path}"]
    result = CliRunner().invoke(main, arguments, input="Hello\nHello\n")
    assert result.exit_code == 0, result.output
    arrivals = [line.arrival for line in lines_of(path) if isinstance(line, RequestRecord)]
    assert arrivals == [1, 2]


def test_a_trace_that_can_not_be_written_is_refused_at_once(run, tmp_path):
    result = run("generate", f"--trace={tmp_path}/none/trace.jsonl", "the")
    assert result.exit_code == 2
    assert "No such file or directory" in result.output


def test_a_bound_without_a_trace_is_a_mistake(run):
    result = run("generate", "--trace-max-mb=5", "the")
    assert result.exit_code == 2
    assert "--trace-max-mb needs --trace" in result.output


def test_a_trace_is_exported(trace, tmp_path):
    path = tmp_path / "out.json"
    result = invoke("trace", "export", trace, "-o", path)
    assert result.exit_code == 0, result.output
    events = json.loads(path.read_text())["traceEvents"]
    assert result.output == f"{path}: {len(events):,} events\n"


@pytest.mark.parametrize("command", [["trace", "export", "-o", "/dev/null"], ["view"]])
def test_a_broken_trace_is_one_clear_line(tmp_path, command):
    path = tmp_path / "trace.jsonl"
    path.write_text("Call me Ishmael.\n")
    result = invoke(*command, path)
    assert result.exit_code == 2
    assert result.output == (
        f"minimal-vllm: error: {path} is not a readable trace: its first line should hold "
        '"format": "minimal-vllm-trace"\n'
    )


def test_what_only_an_engine_has_is_refused_beside_a_trace(trace):
    result = invoke("view", "--max-num-seqs=4", trace)
    assert result.exit_code == 2
    assert "--max-num-seqs has no effect on a trace" in result.output


def test_three_traces_are_refused(trace):
    result = invoke("view", *[trace] * 3)
    assert result.exit_code == 2
    assert "at most two traces" in result.output
