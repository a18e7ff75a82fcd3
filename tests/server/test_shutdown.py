"""The end of a server process, as who started it sees it."""

import asyncio
import os
import signal
import socket

import httpx2
import pytest
from click.testing import CliRunner

from minimal_vllm.cli.main import main
from minimal_vllm.server.config import ServerConfig
from minimal_vllm.server.http_server import bind, serve
from tests.server.harness import PATIENCE, Gate, make_demo_service, process, running, until

STREAM = {"prompt": "It was", "max_tokens": 40, "ignore_eos": True, "stream": True}

DIES = """
from minimal_vllm.cli.main import main
from minimal_vllm.engine.scheduler import Scheduler

def fail(self):
    raise RuntimeError("all is lost")

Scheduler.schedule = fail
main()
"""


def test_after_sigterm_running_requests_finish_and_new_ones_are_refused():
    async def run():
        gate = Gate()
        service = make_demo_service(gate, ServerConfig(shutdown_timeout=PATIENCE))
        async with running(service) as url, httpx2.AsyncClient(timeout=PATIENCE) as client:
            gate.shut()
            stream = asyncio.create_task(client.post(f"{url}/v1/completions", json=STREAM))
            await gate.wait_until_held()
            os.kill(os.getpid(), signal.SIGTERM)
            await until(lambda: service.engine.refusal)
            assert (await client.get(f"{url}/health")).status_code == 503
            refused = await client.post(f"{url}/v1/completions", json={"prompt": "a"})
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
            assert refused.json()["error"]["message"] == "the server is shutting down"
            gate.open()
            answer = (await stream).text
        assert '"finish_reason":"length"' in answer
        assert answer.endswith("data: [DONE]\n\n")

    asyncio.run(run())


def test_requests_that_do_not_finish_in_time_are_told():
    async def run():
        gate = Gate()
        service = make_demo_service(gate, ServerConfig(shutdown_timeout=0.2))
        async with running(service) as url, httpx2.AsyncClient(timeout=PATIENCE) as client:
            gate.shut()
            stream = asyncio.create_task(client.post(f"{url}/v1/completions", json=STREAM))
            await gate.wait_until_held()
            await gate.step()  # so that the first token is told
            os.kill(os.getpid(), signal.SIGTERM)
            answer = (await stream).text
            gate.open()
        assert "choices" in answer
        assert "was not finished within 0.2 s" in answer

    asyncio.run(run())


def test_a_server_whose_engine_dies_says_why_and_ends_with_an_error():
    with process(start=("-c", DIES)) as server:
        response = server.post("/v1/completions", prompt="a")
        assert response.status_code == 500
        assert "has died: RuntimeError: all is lost" in response.json()["error"]["message"]
        status, stderr = server.wait()
        assert status == 1
        assert "minimal-vllm: error: the engine loop has died" in stderr


def test_a_port_that_is_taken_is_one_clear_line():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = CliRunner().invoke(main, ["serve", f"--port={port}"])
    assert result.exit_code == 2
    assert f"can't listen on 127.0.0.1, port {port}" in result.stderr


def test_a_port_that_another_server_takes_meanwhile_is_one_clear_line():
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with bind("127.0.0.1", port) as other:
            other.listen()
            with pytest.raises(OSError, match=rf"can't listen on 127\.0\.0\.1, port {port}: "):
                asyncio.run(serve(make_demo_service(), listener, pytest.fail))


def test_a_host_that_is_not_known_is_one_clear_line():
    result = CliRunner().invoke(main, ["serve", "--host=256.1.1.1"])
    assert result.exit_code == 2
    assert "can't listen on 256.1.1.1, port 8000: " in result.stderr
