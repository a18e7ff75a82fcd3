"""A server whose model several processes compute."""

import openai
import psutil
import pytest

from tests.server.harness import process

PROMPT = {"model": "minimal-vllm-demo", "prompt": "The old captain", "temperature": 0}


def rank_of(server):
    """The process of rank 1."""
    (rank,) = [
        each
        for each in psutil.Process(server._process.pid).children()
        if "minimal_vllm.engine.ranks" in each.cmdline()
    ]
    return rank


def test_a_server_tells_its_clients_that_a_rank_was_killed_and_ends(server):
    expected = server.post("/v1/completions", **PROMPT, max_tokens=8).json()["choices"]
    with process("--tensor-parallel-size=2") as several:
        assert "in 2 processes that share the model" in several.summary
        assert several.post("/v1/completions", **PROMPT, max_tokens=8).json()["choices"] == expected
        assert several.post("/v1/completions", prompt=[99_999]).status_code == 400
        rank = rank_of(several)
        stream = several.client().completions.create(**PROMPT, max_tokens=400, stream=True)
        next(stream)
        rank.kill()
        with pytest.raises(openai.APIError, match=r"rank 1 .* was killed by signal 9"):
            list(stream)
        status, log = several.wait()
        assert status == 1
        assert "was killed by signal 9" in log


def test_a_server_without_requests_ends_if_a_rank_is_killed():
    with process("--tensor-parallel-size=2") as several:
        rank_of(several).kill()
        status, log = several.wait()
        assert status == 1
        assert "was killed by signal 9" in log
