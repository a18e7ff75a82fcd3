"""Replicas on Ray Serve: one server to its clients, whatever happens to a replica."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import httpx
import pytest
from openai import APIError, AsyncOpenAI, BadRequestError

from minimal_vllm.cluster.app import build
from tests.cluster.conftest import replica_processes, serving, wait_until
from tests.cluster.prefixes import MODEL, prefix_prompts, simulated_hits
from tests.markdown import code_blocks, commands, read


def test_an_application_is_built_for_serve_deploy():
    assert build({"replicas": "1:2", "max_num_seqs": 8, "max_choices": 4, "routing": "round-robin"})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"replica": "1"}, "replica is not a known argument"),
        ({"view": True}, "view shows one engine in its own process"),
        ({"ssl_certfile": "x"}, "put a proxy that speaks https"),
        ({"api_server_count": 2}, "HTTP is spoken by the ingress"),
        ({"port": 0}, "choose one that is free"),
        ({"kv_events_config": {"enable_kv_cache_events": True}}, "would share an endpoint"),
    ],
)
def test_what_replicas_cant_have_is_refused_in_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        build(arguments)


@pytest.fixture(scope="module")
def server(ray_address):
    with serving(ray_address, "--replicas=2") as server:
        yield server


def test_all_endpoints_answer(server):
    client = server.client
    assert [each.id for each in client.models.list()] == [MODEL]
    answer = client.completions.create(model=MODEL, prompt="The sea", max_tokens=6, seed=1)
    assert answer.usage.completion_tokens == 6
    stream = client.completions.create(
        model=MODEL, prompt="The sea", max_tokens=6, seed=1, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text
    messages = [{"role": "user", "content": "Good evening."}]
    chat = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=6, n=2)
    assert len(chat.choices) == 2
    streamed = client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=6, stream=True
    )
    assert [chunk.choices[0].finish_reason for chunk in streamed][-1] == "length"
    response = client.responses.create(model=MODEL, input="Good evening.", max_output_tokens=6)
    assert response.usage.output_tokens == 6
    with pytest.raises(BadRequestError, match="maximum context length"):
        client.completions.create(model=MODEL, prompt=[5] * 5000)
    with pytest.raises(BadRequestError, match="temprature"):
        client.completions.create(model=MODEL, prompt="a", extra_body={"temprature": 1})
    choice = {"structured_outputs": {"choice": ["yes", "no"]}}
    constrained = client.completions.create(model=MODEL, prompt="Is it?", extra_body=choice)
    assert constrained.choices[0].text in ("yes", "no")
    for path in ("/health", "/version", "/load", "/tokenizer_info", "/docs"):
        assert httpx.get(f"{server.url}{path}", timeout=30).status_code == 200
    tokens = httpx.post(f"{server.url}/tokenize", json={"prompt": "The sea"}, timeout=30).json()
    assert tokens["count"] == len(tokens["tokens"])


def test_the_metrics_of_all_replicas_are_on_one_page(server):
    ended = server.metric("vllm:request_success_total")
    assert len(ended) == 2
    assert all(ended.values())  # each has served some
    assert set(server.metric("http_requests_total", handler="/v1/completions")) == {"ingress"}


def test_a_client_that_goes_away_ends_its_request_in_the_replica(server):
    before = sum(server.metric("vllm:request_success_total", finished_reason="abort").values())
    stream = server.client.completions.create(
        model=MODEL, prompt="On", max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    assert sum(server.metric("vllm:num_requests_running").values()) == 1
    stream.close()

    def is_aborted():
        found = server.metric("vllm:request_success_total", finished_reason="abort")
        return sum(found.values()) == before + 1

    wait_until(is_aborted, seconds=10)
    assert sum(server.metric("vllm:num_requests_running").values()) == 0


def page_commands():
    return [
        each for block in code_blocks(read("docs/cluster.md"), "bash") for each in commands(block)
    ]


@pytest.mark.parametrize("command", page_commands())
def test_a_command_of_the_page_runs(server, command):
    here = command.replace("http://localhost:8000", server.url)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", here], env={**os.environ, "PATH": path}, check=True
    )


def count_hits(server, prompts):
    hits = 0
    for prompt in prompts:
        answer = server.client.completions.create(model=MODEL, prompt=prompt, max_tokens=2)
        hits += answer.usage.prompt_tokens_details.cached_tokens > 0
    return hits


def test_12_of_16_requests_over_4_prefixes_find_theirs_in_a_cache_as_simulated(server):
    prompts = prefix_prompts(seed=1)
    assert count_hits(server, prompts) == 12 == simulated_hits(prompts, "prefix-aware")
    queries, hits = (
        server.metric(f"vllm:prefix_cache_{name}_total") for name in ("queries", "hits")
    )
    assert all(queries.values())
    assert sum(value > 0 for value in hits.values()) == 2  # both replicas have a share


async def stream_all(server, count):
    """Stream many completions; kill a replica once some have begun."""
    client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)
    begun, at_kill, ends = set(), set(), {}

    async def one(number):
        try:
            stream = await client.completions.create(
                model=MODEL,
                prompt=f"{number} and",
                max_tokens=60,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            async for chunk in stream:
                begun.add(number)
                ends[number] = chunk.choices[0].finish_reason
        except APIError as error:
            ends[number] = str(error)

    async def kill():
        while len(begun) < 12:
            await asyncio.sleep(0.01)
        at_kill.update(begun)
        replica_processes()[0].kill()

    await asyncio.gather(kill(), *(one(number) for number in range(count)))
    return at_kill, ends


def test_a_replica_killed_under_50_streams_loses_only_what_it_had_begun(server):
    assert len(server.replicas()) == 2
    before = server.replicas()
    at_kill, ends = asyncio.run(stream_all(server, 50))
    assert len(ends) == 50
    failed = {number for number, end in ends.items() if end != "length"}
    assert failed
    assert all("a replica was lost" in ends[number] for number in failed)
    # The ingress may have got the first tokens of a few more, which clients had not seen yet.
    assert len(failed - at_kill) <= 8
    assert len(failed) <= 16
    wait_until(lambda: len(server.replicas()) == 2)
    assert len(server.replicas() - before) == 1
    assert count_hits(server, prefix_prompts(seed=2)) >= 8


def test_replicas_follow_the_load_and_no_request_notices(ray_address, server):
    server.process.terminate()
    assert server.process.wait(60) == 0
    options = ["--replicas=1:2", "--target-ongoing-requests=2", "--routing=round-robin"]
    with serving(ray_address, *options) as scaling:
        assert len(scaling.replicas()) == 1
        asyncio.run(load_until(scaling, lambda: len(scaling.replicas()) == 2))
        prompts = prefix_prompts(seed=1)
        assert count_hits(scaling, prompts) == simulated_hits(prompts, "round-robin") == 8
        wait_until(lambda: len(scaling.replicas()) == 1)
        assert scaling.client.completions.create(model=MODEL, prompt="a", max_tokens=1).choices


async def load_until(server, condition):
    """Keep 12 requests in flight until a condition holds; all of them end well."""
    client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)
    random, is_over = Random(0), asyncio.Event()

    async def ask():
        while not is_over.is_set():
            answer = await client.completions.create(
                model=MODEL, prompt=[random.randint(5, 500)] * 20, max_tokens=100
            )
            assert answer.choices[0].finish_reason in ("length", "stop")

    async def watch():
        await asyncio.to_thread(wait_until, condition)
        is_over.set()

    await asyncio.gather(watch(), *(ask() for _ in range(12)))
