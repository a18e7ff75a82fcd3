"""docs/benchmarking.md is true: every command in it runs."""

import pytest

from tests.commands import run
from tests.markdown import broken_links, code_blocks, read
from tests.server.harness import process

TEXT = read("docs/benchmarking.md")
ADDRESS = "http://localhost:8000"


@pytest.fixture(scope="module")
def url():
    with process() as server:
        yield server.url


@pytest.mark.parametrize("command", code_blocks(TEXT, "bash"))
def test_a_command_runs(url, command, tmp_path):
    arguments = ["bash", "-euo", "pipefail", "-c", command.replace(ADDRESS, url)]
    result = run(arguments, tmp_path)
    assert result.returncode == 0, result.stdout
    assert result.stdout
    assert ("--plot" in command) == (tmp_path / "latency.png").exists()


def test_every_link_resolves():
    assert broken_links("docs/benchmarking.md") == []
