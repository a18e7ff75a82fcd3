"""Fixtures of an environment without PyTorch: the servers run in the one that has it."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv" / "bin" / "python"


@pytest.fixture(scope="session")
def urls():
    """The base URLs of the servers: ``demo`` has the built-in model, ``script`` a scripted one."""
    paths = [str(ROOT / folder) for folder in ("src", "tests", ".")]
    servers = subprocess.Popen(
        [PYTHON, "-m", "tests.clients.serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        text=True,
    )
    with servers:
        line = servers.stdout.readline()
        assert line, "the servers did not start: see standard error"
        yield {name: f"{url}/v1" for name, url in json.loads(line).items()}
        servers.stdin.close()


@pytest.fixture(scope="session")
def demo(urls):
    return urls["demo"]


@pytest.fixture(scope="session")
def script(urls):
    return urls["script"]
