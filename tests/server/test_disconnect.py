"""Clients that go away, over real connections to a server whose engine can be looked into."""

import asyncio
import json

import httpx2
import pytest

from minimal_vllm.server import middleware
from tests.server.harness import (
    FEW_BLOCKS,
    MODEL,
    PATIENCE,
    Gate,
    make_demo_service,
    metric,
    open_request,
    running,
    until,
)

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
LONG = {"max_tokens": 1500, "ignore_eos": True}
BODIES = {
    COMPLETIONS: {"prompt": "It was", **LONG},
    CHAT: {"messages": [{"role": "user", "content": "It was"}], **LONG},
    RESPONSES: {"model": MODEL, "input": "It was", "max_output_tokens": 1500},
    MESSAGES: {
        "model": MODEL,
        "messages": [{"role": "user", "content": "It was"}],
        "max_tokens": 1500,
    },
}


async def until_gone(service, gate):
    """Wait until the server knows that all clients went away, and let the engine go on."""
    await until(lambda: not service.engine._readers)
    gate.open()


async def check_clean(service, url):
    """Nothing is left of those who went away; none ran to its end; the next one is served."""
    scheduler = service.llm.engine.scheduler
    await until(lambda: not scheduler.has_work and service.engine.num_waiting == 0)
    scheduler.check()
    assert scheduler.pool.num_free == FEW_BLOCKS
    async with httpx2.AsyncClient(timeout=PATIENCE) as client:
        text = (await client.get(f"{url}/metrics")).text
        for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
            assert metric(text, f"vllm:{name}") == 0
        assert metric(text, "vllm:request_success_total", finished_reason="length") == 0
        answer = await client.post(f"{url}{COMPLETIONS}", json={"prompt": "a", "max_tokens": 2})
    assert answer.status_code == 200


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_blocks(path, stream):
    async def run():
        gate = Gate()
        service = make_demo_service(gate)
        async with running(service) as url:
            gate.shut()
            reader, writer = await open_request(url, path, {**BODIES[path], "stream": stream})
            await gate.wait_until_held()
            if stream:
                await gate.step()
                await reader.readuntil(b"data: ")
            writer.transport.abort()
            await until_gone(service, gate)
            await check_clean(service, url)

    asyncio.run(run())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_may_go_away_while_its_request_waits_or_its_prompt_is_computed(stream):
    async def run():
        gate = Gate()
        service = make_demo_service(gate, max_num_seqs=2, max_num_batched_tokens=16)
        async with running(service) as url:
            scheduler = service.llm.engine.scheduler
            body = {**BODIES[COMPLETIONS], "stream": stream}
            gate.shut()
            _, decoding = await open_request(url, COMPLETIONS, body)
            await gate.wait_until_held()
            _, prefilling = await open_request(url, COMPLETIONS, {**body, "prompt": "a " * 1000})
            await until(lambda: service.engine.num_waiting == 1)
            await gate.step()
            assert len(scheduler.running) == 2
            assert scheduler.running[1].num_uncomputed_tokens > 0
            _, queued = await open_request(url, COMPLETIONS, body)
            await until(lambda: service.engine.num_waiting == 1)
            for writer in (decoding, prefilling, queued):
                writer.transport.abort()
            await until_gone(service, gate)
            await check_clean(service, url)

    asyncio.run(run())


def test_a_crowd_that_vanishes_leaves_nothing_behind():
    async def run():
        gate = Gate()
        service = make_demo_service(gate, max_num_seqs=16)
        async with running(service) as url:
            gate.shut()
            body = {**BODIES[COMPLETIONS], "n": 2, "stream": True}
            connections = [await open_request(url, COMPLETIONS, body) for _ in range(40)]
            await until(lambda: len(service.engine._readers) == 40)
            await gate.wait_until_held()
            await gate.step()
            await connections[0][0].readuntil(b"data: ")
            for _, writer in connections:
                writer.transport.abort()
            await until_gone(service, gate)
            await check_clean(service, url)

    asyncio.run(run())


def test_200_clients_that_vanish_in_mid_stream_leave_nothing_behind():
    async def run():
        gate = Gate()
        service = make_demo_service(gate)
        async with running(service) as url:
            gate.shut()
            paths = (COMPLETIONS, CHAT) * 100
            opening = [open_request(url, path, {**BODIES[path], "stream": True}) for path in paths]
            connections = await asyncio.gather(*opening)
            await until(lambda: len(service.engine._readers) == 200)
            await gate.wait_until_held()
            await gate.step(5)  # all prompts are computed, and their first tokens told
            for reader, _ in connections:
                await reader.readuntil(b"data: ")
            scheduler = service.llm.engine.scheduler
            assert len(scheduler.running) + len(scheduler.waiting) == 200
            for _, writer in connections:
                writer.transport.abort()
            await until_gone(service, gate)
            await check_clean(service, url)

    asyncio.run(run())


def test_a_client_that_does_not_read_delays_no_other_and_misses_nothing():
    async def run():
        gate = Gate()
        service = make_demo_service(gate)
        async with running(service, send_buffer=4096) as url:
            scheduler = service.llm.engine.scheduler
            gate.shut()
            # Far more bytes than fit into the buffers on the way.
            body = {"prompt": "It was", "max_tokens": 300, "ignore_eos": True, "stream": True}
            body |= {"logprobs": 20, "return_token_ids": True}
            reader, _ = await open_request(url, COMPLETIONS, body, receive_buffer=4096)
            await gate.wait_until_held()
            gate.open()
            async with httpx2.AsyncClient(timeout=PATIENCE) as client:
                short = {"prompt": "a", "max_tokens": 2}
                assert (await client.post(f"{url}{COMPLETIONS}", json=short)).status_code == 200
            await until(lambda: not scheduler.has_work)
            assert service.engine._readers  # it is computed, but could not be sent
            answer = b""
            while b"data: [DONE]" not in answer:
                answer += await reader.read(2**16)
            lines = [line for line in answer.decode().splitlines() if line.startswith("data: {")]
            choices = [json.loads(line[6:])["choices"][0] for line in lines]
            assert sum(len(choice["token_ids"]) for choice in choices) == 300
            assert sum(len(choice["logprobs"]["tokens"]) for choice in choices) == 300
            assert len(choices) < 300, "what waited for the client was not merged"

    asyncio.run(run())


def test_a_client_that_never_reads_is_disconnected(monkeypatch):
    async def run():
        gate = Gate()
        service = make_demo_service(gate)
        async with running(service, send_buffer=4096) as url:
            gate.shut()
            monkeypatch.setattr(middleware, "SEND_TIMEOUT", 0.5)  # read when a request begins
            body = {**BODIES[COMPLETIONS], "stream": True, "logprobs": 20}
            _, writer = await open_request(url, COMPLETIONS, body, receive_buffer=4096)
            await gate.wait_until_held()
            gate.allow(300)  # far more bytes than fit into the buffers on the way
            await until_gone(service, gate)
            await check_clean(service, url)
            writer.transport.abort()

    asyncio.run(run())


def test_the_server_answers_others_while_a_step_is_computed():
    async def run():
        gate = Gate()
        service = make_demo_service(gate)
        async with running(service) as url, httpx2.AsyncClient(timeout=PATIENCE) as client:
            gate.shut()
            body = {"prompt": "a", "max_tokens": 2}
            answer = asyncio.create_task(client.post(f"{url}{COMPLETIONS}", json=body))
            await gate.wait_until_held()
            assert (await client.get(f"{url}/health")).status_code == 200
            tokens = await client.post(f"{url}/tokenize", json={"prompt": "Hello"})
            assert tokens.status_code == 200
            assert not answer.done()
            gate.open()
            assert (await answer).status_code == 200

    asyncio.run(run())


@pytest.mark.parametrize("stream", [False, True])
def test_a_failed_step_is_a_500_with_a_reason_and_the_next_request_is_served(stream):
    async def run():
        service = make_demo_service()
        runner = service.llm.engine._runner
        original = runner.launch

        def fail(plan):
            runner.launch = original
            raise RuntimeError("out of luck")

        runner.launch = fail
        async with running(service) as url:
            async with httpx2.AsyncClient(timeout=PATIENCE) as client:
                body = {**BODIES[COMPLETIONS], "stream": stream}
                response = await client.post(f"{url}{COMPLETIONS}", json=body)
            assert response.status_code == 500
            error = response.json()["error"]
            assert error["message"] == "the engine failed: RuntimeError: out of luck"
            assert error["type"] == "server_error"
            await check_clean(service, url)

    asyncio.run(run())


def test_a_step_that_fails_in_mid_stream_ends_the_stream_with_the_reason():
    async def run():
        service = make_demo_service()
        runner = service.llm.engine._runner
        original, steps = runner.launch, iter(range(10**6))

        def fail_once(plan):
            if next(steps) == 3:
                raise RuntimeError("out of luck")
            return original(plan)

        runner.launch = fail_once
        async with running(service) as url:
            body = {**BODIES[COMPLETIONS], "stream": True}
            async with (
                httpx2.AsyncClient(timeout=PATIENCE) as client,
                client.stream("POST", f"{url}{COMPLETIONS}", json=body) as response,
            ):
                first, *_, error, done = [line async for line in response.aiter_lines() if line]
            assert "choices" in first
            assert "out of luck" in json.loads(error.removeprefix("data: "))["error"]["message"]
            assert done == "data: [DONE]"
            await check_clean(service, url)

    asyncio.run(run())
