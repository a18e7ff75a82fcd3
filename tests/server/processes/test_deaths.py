"""Processes that are killed under load: each client hears of it, and nothing is left behind."""

import asyncio
import json
import random
import signal
import socket
import time

import httpx2
import psutil
import pytest
from click.testing import CliRunner

from minimal_vllm.cli.main import main
from tests.server.harness import FEW_BLOCKS, PATIENCE, metric, process
from tests.server.test_shutdown import DIES

BODY = {"prompt": "It was a dark", "temperature": 0, "ignore_eos": True, "stream": True}
NUM_CLIENTS = 12
SOON = 30
"""Seconds in which a process has to notice that another is gone."""

CANNOT_START = """
import sys
sys.executable = "/bin/false"
from minimal_vllm.cli.main import main
main()
"""

FAULTY = """
from minimal_vllm.cli.main import main
from minimal_vllm.runner.plain import PlainRunner

launch = PlainRunner.launch

def fail_at_seven(self, plan):
    if any(entry.request.params.max_tokens == 7 for entry in plan.scheduled):
        raise RuntimeError("out of luck")
    return launch(self, plan)

PlainRunner.launch = fail_at_seven
main()
"""
"""A server on which each step fails that has a request for 7 tokens."""


def processes(server):
    """The engine's process, and its HTTP processes."""
    engine = psutil.Process(server._process.pid)
    return engine, engine.children()


async def stream(client, url, num_tokens, begun=None):
    """How a stream ended: whole, told (by an event or a status), or cut (without a connection)."""
    text = ""
    try:
        body = {**BODY, "max_tokens": num_tokens}
        async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
            async for piece in response.aiter_text():
                text += piece
                if begun is not None:
                    begun.set()
    except httpx2.TimeoutException:
        raise
    except httpx2.TransportError:
        return "cut"
    if response.status_code != 200 or '"error"' in text:
        print("told:", response.status_code, text[-300:])  # shown if the test fails
        return "told"
    events = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
    return "whole"


async def complete(client, url, num_tokens):
    """How a request without streaming ended; see ``stream``."""
    body = {**BODY, "stream": False, "max_tokens": num_tokens}
    try:
        response = await client.post(f"{url}/v1/completions", json=body)
    except httpx2.TimeoutException:
        raise
    except httpx2.TransportError:
        return "cut"
    if response.status_code != 200:
        assert response.json()["error"]["message"]
        print("told:", response.status_code, response.text)
        return "told"
    assert response.json()["usage"]["completion_tokens"] == num_tokens
    return "whole"


async def at_random(server, chance, act):
    """The ends of requests that come one after the other, while something happens at some time."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx2.AsyncClient(timeout=PATIENCE, limits=limits) as client:

        async def come():
            await asyncio.sleep(chance.uniform(0, 1))
            send = chance.choice((stream, complete))
            return await send(client, server.url, chance.randint(1, 150))

        async def happen():
            await asyncio.sleep(chance.uniform(0, 1.5))
            act()

        *ends, _ = await asyncio.gather(*(come() for _ in range(2 * NUM_CLIENTS)), happen())
        return ends


async def under_load(server, num_tokens, act):
    """The ends of some streams, while something happens once all have begun."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx2.AsyncClient(timeout=PATIENCE, limits=limits) as client:
        begun = [asyncio.Event() for _ in range(NUM_CLIENTS)]
        streams = [
            asyncio.create_task(stream(client, server.url, num_tokens, each)) for each in begun
        ]
        await asyncio.gather(*(each.wait() for each in begun))
        act()
        return await asyncio.gather(*streams)


def wait_for(condition):
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def assert_nothing_is_left(server, children):
    """No process runs, and the port is free."""
    address = httpx2.URL(server.url)
    _, alive = psutil.wait_procs(children, timeout=SOON)
    assert alive == []
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((address.host, address.port))


def assert_idle(server):
    """The engine has no request, and all its blocks."""

    def is_idle():
        text = server.get("/metrics").text
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        return not any(metric(text, f"vllm:{name}") for name in names)

    wait_for(is_idle)


def test_a_step_that_fails_ends_its_requests_with_the_reason_and_the_server_goes_on():
    with process("--api-server-count=1", start=("-c", FAULTY)) as server:
        for body in ({**BODY, "stream": False}, BODY):
            failed = server.post("/v1/completions", **body, max_tokens=7)
            assert failed.status_code == 500
            message = failed.json()["error"]["message"]
            assert message == "the engine failed: RuntimeError: out of luck"
            assert server.post("/v1/completions", **body, max_tokens=8).status_code == 200
        assert_idle(server)


def test_http_processes_that_are_killed_are_replaced_and_the_others_clients_notice_nothing():
    with process("--api-server-count=2") as server:
        engine, _ = processes(server)
        for seed in range(2):
            _, children = processes(server)
            victim = random.Random(seed).choice(children)
            ends = asyncio.run(under_load(server, 150, victim.kill))
            assert set(ends) <= {"whole", "cut"}
            wait_for(lambda: len(engine.children()) == 2)
            assert_idle(server)
        assert server.post("/v1/completions", **BODY, max_tokens=3).status_code == 200
        text = server.get("/metrics").text
        ended = {
            reason: metric(text, "vllm:request_success_total", finished_reason=reason)
            for reason in ("length", "abort", "error")
        }
        assert ended["error"] == 0
        assert ended["length"] + ended["abort"] == 2 * NUM_CLIENTS + 1
        _, children = processes(server)
        server.terminate()
        status, log = server.wait()
        assert status == 0
        assert log.count("another is started") == 2
        assert_nothing_is_left(server, children)


@pytest.mark.parametrize("seed", range(2))
def test_whatever_is_killed_whenever_each_client_hears_of_it(seed):
    """Signals meet requests that connect, wait, stream or end, and processes that start anew."""
    chance = random.Random(seed)
    with process("--api-server-count=2") as server:
        engine, _ = processes(server)
        for _ in range(3):
            _, children = processes(server)
            victims = chance.sample(children, chance.randint(1, len(children)))

            def kill(victims=victims):
                for victim in victims:
                    victim.kill()

            ends = asyncio.run(at_random(server, chance, kill))
            assert set(ends) <= {"whole", "cut"}
            wait_for(lambda: len(engine.children()) == 2)
            assert_idle(server)
        _, children = processes(server)
        ends = asyncio.run(at_random(server, chance, engine.kill))
        assert len(ends) == 2 * NUM_CLIENTS
        assert server.wait()[0] == -signal.SIGKILL
        assert_nothing_is_left(server, children)


def test_an_http_process_that_is_killed_before_it_is_ready_is_replaced_too():
    with process("--api-server-count=1") as server:
        engine, children = processes(server)
        for _ in range(3):
            (child,) = children
            child.kill()
            wait_for(lambda gone=child: child_of(engine) not in (None, gone))
            children = engine.children()
        assert server.post("/v1/completions", **BODY, max_tokens=3).status_code == 200


def child_of(engine):
    """The only HTTP process; None while it is replaced."""
    return next(iter(engine.children()), None)


def test_if_the_engine_s_process_is_killed_its_clients_get_errors_and_nothing_runs_on():
    with process("--api-server-count=2") as server:
        engine, children = processes(server)
        ends = asyncio.run(under_load(server, 1500, engine.kill))
        assert set(ends) == {"told"}
        assert server.wait()[0] == -signal.SIGKILL
        assert_nothing_is_left(server, children)


def test_if_the_engine_loop_dies_its_clients_are_told_and_the_server_ends_with_an_error():
    with process("--api-server-count=2", start=("-c", DIES)) as server:
        _, children = processes(server)
        response = server.post("/v1/completions", prompt="a")
        assert response.status_code == 500
        assert "has died: RuntimeError: all is lost" in response.json()["error"]["message"]
        status, stderr = server.wait()
        assert status == 1
        assert "minimal-vllm: error: the engine loop has died" in stderr
        assert_nothing_is_left(server, children)


@pytest.mark.parametrize(("num_signals", "to_all"), [(1, False), (2, False), (1, True)])
def test_after_sigterm_running_requests_finish_and_after_a_second_they_end_with_the_reason(
    num_signals, to_all
):
    """Service managers send signals to all processes of a server at once."""
    with process("--api-server-count=2", f"--num-gpu-blocks-override={4 * FEW_BLOCKS}") as server:
        engine, children = processes(server)

        def end():
            for _ in range(num_signals):
                for each in (*children, engine) if to_all else (engine,):
                    each.terminate()
                time.sleep(0.5)  # two signals at once are one

        ends = asyncio.run(under_load(server, 100 if num_signals == 1 else 1900, end))
        assert set(ends) == {"whole" if num_signals == 1 else "told"}
        assert server.wait()[0] == 0
        assert_nothing_is_left(server, children)


def test_a_server_whose_http_processes_can_t_start_says_so_and_ends_with_an_error():
    with (
        pytest.raises(RuntimeError, match="ended with status 1 before it was ready"),
        process("--api-server-count=1", start=("-c", CANNOT_START)),
    ):
        pass


def test_the_view_needs_the_engine_in_its_own_process():
    result = CliRunner().invoke(main, ["serve", "--api-server-count=1", "--view"])
    assert result.exit_code == 2
    assert "needs api_server_count=0" in result.stderr
