"""docs/server.md tells the truth: what it shows to run runs, and all fields are in it."""

import json
import re
import subprocess
import sys

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


def test_every_link_resolves():
    assert broken_links("docs/server.md") == []
