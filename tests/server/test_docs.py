"""docs/server.md tells the truth: what it shows to run runs, and all fields are in it."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minimal_vllm.server.chat.request import ChatCompletionRequest
from minimal_vllm.server.completions import CompletionRequest
from minimal_vllm.server.messages.request import MessagesRequest
from minimal_vllm.server.responses.request import ResponsesRequest
from tests.commands import run
from tests.markdown import broken_links, code_blocks, read
from tests.server.harness import process

TEXT = read("docs/server.md")
ADDRESS = "http://localhost:8000"


@pytest.fixture(scope="module")
def url():
    with process() as server:
        yield server.url


@pytest.mark.parametrize("command", code_blocks(TEXT, "bash"))
def test_a_command_runs(url, command):
    assert ADDRESS in command
    result = run(["bash", "-euo", "pipefail", "-c", command.replace(ADDRESS, url)])
    assert result.returncode == 0, result.stdout
    assert result.stdout


def test_the_refusal_is_the_one_that_is_shown(url):
    (shown,) = code_blocks(TEXT, "json")
    (command,) = (each for each in code_blocks(TEXT, "bash") if "best_of" in each)
    given = subprocess.check_output(["bash", "-c", command.replace(ADDRESS, url)])
    assert json.loads(given) == json.loads(shown)


@pytest.mark.parametrize("snippet", code_blocks(TEXT, "python"))
def test_a_snippet_runs(url, snippet):
    result = run([sys.executable, "-c", snippet.replace(ADDRESS, url)])
    assert result.returncode == 0, result.stdout
    assert result.stdout


def test_all_fields_are_listed():
    listed = set(re.findall(r"`(\w+)`", TEXT.partition("What can be asked for")[2]))
    requests = (CompletionRequest, ChatCompletionRequest, ResponsesRequest, MessagesRequest)
    fields = {name for request in requests for name in request.model_fields}
    assert fields - listed == set()


def test_the_table_of_clients_is_what_the_tests_try():
    section = TEXT.partition("## Clients")[2].partition("## ")[0]
    rows = [row.split(" | ") for row in re.findall(r"^\| (.*) \|$", section, re.MULTILINE)]
    header, *rows = rows
    shown = {
        name: {ability for ability, cell in zip(header[2:], cells, strict=True) if cell == "yes"}
        for name, _, *cells in rows
    }
    assert shown == marked_clients()


def marked_clients():
    """The clients that tests are marked with, and what is tried of each."""
    clients = {}
    for folder in ("server", "clients"):
        for path in (Path(__file__).parents[1] / folder).glob("test_*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.client":
                    name, *abilities = (argument.value for argument in node.args)
                    clients.setdefault(name, set()).update(abilities)
    return clients


def test_every_link_resolves():
    assert broken_links("docs/server.md") == []
