"""docs/benchmarking.md tells the truth: every command that it shows runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.markdown import broken_links, code_blocks, read
from tests.server.harness import ENVIRONMENT, process

TEXT = read("docs/benchmarking.md")
ADDRESS = "http://localhost:8000"
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


@pytest.fixture(scope="module")
def url():
    with process() as server:
        yield server.url


@pytest.mark.parametrize("command", code_blocks(TEXT, "bash"))
def test_a_command_runs(url, command, tmp_path):
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command.replace(ADDRESS, url)],
        cwd=tmp_path,
        env={**ENVIRONMENT, "PATH": PATH},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout
    assert ("--plot" in command) == (tmp_path / "latency.png").exists()


def test_every_link_resolves():
    assert broken_links("docs/benchmarking.md") == []
