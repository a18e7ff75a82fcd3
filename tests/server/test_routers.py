"""vLLM's and SGLang's routers, each in front of two servers."""

import re
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import openai
import pytest

from tests.server.harness import ENVIRONMENT, MODEL, PATIENCE, process

BIN = Path(sys.executable).parent
ROUTERS = {"vllm-router": [], "sglang-router": ["launch"]}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Good evening."}]
BODIES = {CHAT: {"messages": HELLO}, COMPLETIONS: {"prompt": "It was a dark"}}
LONG = 1900
"""Number of tokens that takes far longer to generate than a router takes to drop a connection."""

pytestmark = pytest.mark.skipif(
    not (BIN / "vllm-router").exists(), reason="the routers' wheels are for Linux only"
)


def free_ports(count):
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def backends():
    with process() as first, process() as second:
        yield first, second


@contextmanager
def started(command, backends, log):
    port, metrics_port = free_ports(2)
    urls = [backend.url for backend in backends]
    options = ["--policy=round_robin", f"--port={port}", f"--prometheus-port={metrics_port}"]
    router = subprocess.Popen(
        [*command, *options, "--worker-urls", *urls],
        stdout=log,
        stderr=log,
        env=ENVIRONMENT,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: router.poll() is not None or is_ready(url))
        assert router.poll() is None
        yield url
    finally:
        router.kill()
        router.wait()


def is_ready(url):
    try:
        return httpx2.get(f"{url}/readiness").status_code == 200
    except httpx2.TransportError:
        return False


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="module", params=ROUTERS)
def router(request, backends, tmp_path_factory):
    """The URL of a router in front of both."""
    with (
        (tmp_path_factory.mktemp("router") / "log").open("w") as log,
        started([BIN / request.param, *ROUTERS[request.param]], backends, log) as url,
    ):
        yield url


@pytest.fixture
def routed(router):
    return openai.OpenAI(base_url=f"{router}/v1", api_key="none", max_retries=0, timeout=PATIENCE)


def total(backend, name):
    """The value of a counter or gauge, summed over its labels."""
    found = re.findall(rf"^{name}{{.*}} (\S+)$", backend.get("/metrics").text, re.MULTILINE)
    return sum(map(float, found))


def test_it_says_that_the_servers_are_healthy(router):
    for path in ("/health", "/liveness", "/readiness"):
        assert httpx2.get(f"{router}{path}").status_code == 200


def test_it_lists_the_models(routed):
    assert (
        routed.models.list().data
    )  # SGLang's calls the model of a server that isn't its own "unknown"


@pytest.mark.parametrize("path", BODIES)
def test_an_answer_is_the_servers_own(router, server, path):
    body = {"model": MODEL, **BODIES[path], "max_tokens": 12, "temperature": 0}
    answer = httpx2.post(f"{router}{path}", json=body, timeout=PATIENCE).json()
    own = server.post(path, **body).json()
    for choice in (*answer["choices"], *own["choices"]):
        choice.pop("stop_reason", None)
    assert answer["choices"] == own["choices"]
    assert answer["usage"]["total_tokens"] == own["usage"]["total_tokens"]


def test_a_streamed_chat_is_the_whole_one_in_pieces(routed):
    body = {"model": MODEL, "messages": HELLO, "max_tokens": 12, "temperature": 0}
    whole = routed.chat.completions.create(**body)
    chunks = list(
        routed.chat.completions.create(**body, stream=True, stream_options={"include_usage": True})
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len(pieces) > 1
    assert chunks[-1].usage.completion_tokens == 12


def test_a_streamed_completion_is_the_whole_one_in_pieces(routed):
    body = {"model": MODEL, "prompt": "It was a dark", "max_tokens": 12, "temperature": 0}
    whole = routed.completions.create(**body)
    pieces = [chunk.choices[0].text for chunk in routed.completions.create(**body, stream=True)]
    assert "".join(pieces) == whole.choices[0].text
    assert len(pieces) > 1


def test_a_structured_chat_and_a_refusal_pass_through(routed):
    schema = {"type": "object", "properties": {"sky": {"enum": ["clear"]}}, "required": ["sky"]}
    form = {"type": "json_schema", "json_schema": {"name": "weather", "schema": schema}}
    answer = routed.chat.completions.create(model=MODEL, messages=HELLO, response_format=form)
    assert "clear" in answer.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="maximum context length is 2048") as refusal:
        routed.completions.create(model=MODEL, prompt="a " * 3000)
    assert refusal.value.code == "context_length_exceeded"


def test_both_servers_get_requests(routed, backends):
    before = [total(backend, "vllm:prompt_tokens_total") for backend in backends]
    for _ in range(4):
        routed.completions.create(model=MODEL, prompt="It was a dark", max_tokens=1)
    after = [total(backend, "vllm:prompt_tokens_total") for backend in backends]
    assert all(was < now for was, now in zip(before, after, strict=True))


@pytest.mark.parametrize("path", BODIES)
def test_a_cancelled_stream_ends_its_request_at_the_server(router, backends, path):
    body = {"model": MODEL, **BODIES[path], "stream": True, "max_tokens": LONG, "ignore_eos": True}
    before = sum(total(backend, "vllm:generation_tokens_total") for backend in backends)
    with httpx2.stream("POST", f"{router}{path}", json=body, timeout=PATIENCE) as answer:
        next(line for line in answer.iter_lines() if line.startswith("data: "))
    until(lambda: all(total(each, "vllm:num_requests_running") == 0 for each in backends))
    after = sum(total(backend, "vllm:generation_tokens_total") for backend in backends)
    assert 0 < after - before < LONG
