"""The README tells the truth: links lead somewhere, and all that it shows to run runs.

Code fences say which is which: ``bash`` and ``python`` are run here; ``console`` holds what is
not, since it installs or downloads, and ``text`` holds output.
"""

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.model.registry import FAMILIES
from tests.markdown import ROOT, broken_links, code_blocks, read

TEXT = read("README.md")
COMMANDS = [
    line for block in code_blocks(TEXT, "bash") for line in block.splitlines() if line.strip()
]


def run(arguments):
    """Run a command in the repository, with this Python's scripts first in the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        arguments,
        cwd=ROOT,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


def section(title):
    return TEXT.partition(f"# {title}\n")[2].partition("\n#")[0]


def test_every_link_resolves():
    assert broken_links("README.md") == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs(command):
    result = run(["bash", "-euo", "pipefail", "-c", command])
    assert result.returncode == 0, result.stderr
    assert result.stdout


@pytest.mark.parametrize("snippet", code_blocks(TEXT, "python"))
def test_a_snippet_runs(snippet):
    result = run([sys.executable, "-c", snippet])
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_all_commands_of_the_tool_are_shown_and_have_help():
    for name in ("generate", "chat", "info", "simulate", "ablate"):
        assert any(f"minimal-vllm {name}" in command for command in COMMANDS)
        assert run([sys.executable, "-m", "minimal_vllm", name, "--help"]).returncode == 0


def test_what_make_demo_prints_is_what_is_shown():
    (demo,) = (block for block in code_blocks(TEXT, "console") if block.startswith("$ make demo"))
    command, text = demo.splitlines()[1:3]
    assert command.removeprefix(".venv/bin/") in read("Makefile")
    prompt = re.search(r'"(.*)"', command)[1]
    llm = LLM(device="cpu", num_gpu_blocks_override=128)
    # Rounding differs between machines, and in a long text it comes to light some day.
    params = SamplingParams(**llm.built.files.generation_config.sampling, max_tokens=8)
    (output,) = llm.generate(prompt, params, use_tqdm=False)
    assert text.startswith(output.outputs[0].text)


def test_the_chart_is_what_the_example_draws():
    (chart,) = code_blocks(TEXT, "text")
    drawn = run([sys.executable, "examples/02_continuous_batching.py"]).stdout.splitlines()
    missing = {line.rstrip() for line in chart.splitlines()} - {line.rstrip() for line in drawn}
    assert missing == set()


def test_all_that_is_supported_is_listed_and_nothing_else():
    listed = set(re.findall(r"`(\w+)`", section("What is supported")))
    parameters = {field.name for field in fields(SamplingParams)}
    assert listed == parameters | FAMILIES.keys()
