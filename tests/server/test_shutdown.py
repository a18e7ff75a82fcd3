"""The end of a server process, as who started it sees it."""

import httpx2
import openai
import pytest
from click.testing import CliRunner

from minimal_vllm.cli.main import main
from tests.server.harness import MODEL, process

LONG = {"model": MODEL, "prompt": "It was", "max_tokens": 1500}
EXTRA = {"ignore_eos": True}

DIES = """
from minimal_vllm.cli.main import main
from minimal_vllm.engine.scheduler import Scheduler

def fail(self):
    raise RuntimeError("all is lost")

Scheduler.schedule = fail
main()
"""


def test_an_idle_server_ends_at_once():
    with process() as server:
        server.terminate()
        assert server.wait()[0] == 0


def test_after_sigterm_running_requests_finish_and_new_ones_are_refused():
    with process() as server, server.client() as client:
        stream = client.completions.create(
            **{**LONG, "max_tokens": 400}, extra_body=EXTRA, stream=True
        )
        next(stream)
        server.terminate()
        refused = None
        rest = []
        for chunk in stream:
            if refused is None and server.get("/health").status_code == 503:
                refused = server.post("/v1/completions", prompt="a")
            rest.append(chunk)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert refused.json()["error"]["message"] == "the server is shutting down"
        assert rest[-1].choices[0].finish_reason == "length"
        status, stderr = server.wait()
        assert status == 0, stderr
        with pytest.raises(httpx2.ConnectError):
            server.get("/health")


def test_requests_that_do_not_finish_in_time_are_told():
    with process("--shutdown-timeout=0.2") as server, server.client() as client:
        stream = client.completions.create(**LONG, extra_body=EXTRA, stream=True)
        next(stream)
        server.terminate()
        with pytest.raises(openai.APIError, match=r"was not finished within 0.2 s"):
            list(stream)
        assert server.wait()[0] == 0


def test_a_server_whose_engine_dies_says_why_and_ends_with_an_error():
    with process(start=("-c", DIES)) as server:
        response = server.post("/v1/completions", prompt="a")
        assert response.status_code == 500
        assert "has died: RuntimeError: all is lost" in response.json()["error"]["message"]
        status, stderr = server.wait()
        assert status == 1
        assert "minimal-vllm: error: the engine loop has died" in stderr


def test_a_port_that_is_taken_is_one_clear_line():
    with process() as server:
        port = httpx2.URL(server.url).port
        result = CliRunner().invoke(main, ["serve", f"--port={port}"])
    assert result.exit_code == 2
    assert f"can't listen on 127.0.0.1, port {port}" in result.stderr
