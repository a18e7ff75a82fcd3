"""docs/simulator.md is true: its commands run and print what it shows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minimal_vllm_lab.sim.config import Achieved
from tests.markdown import broken_links, code_blocks, read

TEXT = read("docs/simulator.md")
*COMMANDS, WITH_FIT = code_blocks(TEXT, "bash")
SHOWN = code_blocks(TEXT, "text")


def run(arguments, folder):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        arguments,
        cwd=folder,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )


@pytest.mark.parametrize(("command", "shown"), list(zip(COMMANDS, SHOWN, strict=True)))
def test_a_command_prints_the_shown_output(command, shown, tmp_path):
    printed = run(["bash", "-euo", "pipefail", "-c", command], tmp_path).stdout
    assert printed.splitlines()[: len(shown.splitlines())] == shown.splitlines()


def test_costs_are_fitted_and_used(tmp_path):
    assert "p99_ttft_ms" in run(["bash", "-euo", "pipefail", "-c", WITH_FIT], tmp_path).stdout


def test_the_fractions_are_the_defaults():
    achieved = Achieved()
    for fraction in ("bandwidth", "matmul", "attention"):
        percent = f"{100 * getattr(achieved, f'{fraction}_fraction'):.0f} %"
        assert percent in " ".join(TEXT.split()).partition(f"(`--{fraction}-fraction`)")[0][-80:]
    assert f"{achieved.step_overhead_ms} ms" in TEXT


def test_every_link_resolves():
    assert broken_links("docs/simulator.md") == []
