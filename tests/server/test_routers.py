"""vLLM's and SGLang's routers, each in front of two servers."""

import json
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
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
HELLO = [{"role": "user", "content": "Good evening."}]
BODIES = {
    CHAT: {"messages": HELLO},
    COMPLETIONS: {"prompt": "It was a dark"},
    RESPONSES: {"input": HELLO},
    MESSAGES: {"messages": HELLO},
}
LIMIT = {RESPONSES: "max_output_tokens"}
"""The limit of the answer's tokens, where it isn't called ``max_tokens``."""

OTHERS = {
    "/v1/messages/count_tokens": {"messages": HELLO},
    "/tokenize": {"prompt": "It was a dark"},
    "/detokenize": {"tokens": [5, 6, 7]},
    f"/v1/models/{MODEL}": None,
    "/tokenizer_info": None,
    "/load": None,
    "/ping": None,
    "/version": None,
    "/openapi.json": None,
    "/docs": None,
}
"""Endpoints that answer alike each time, with the bodies of those that are posted to."""

UNKNOWN_TO_SGLANG = {MESSAGES, "/metrics", *OTHERS}
"""Paths that SGLang's router doesn't pass on. It answers 404 by itself."""
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
def passes_on(router, request):
    """Tells whether the router passes a path on; if not, it answers 404 by itself."""

    def passes_on(path):
        if request.node.callspec.params["router"] == "vllm-router" or path not in UNKNOWN_TO_SGLANG:
            return True
        method = "GET" if OTHERS.get(path, {}) is None or path == "/metrics" else "POST"
        answer = httpx2.request(
            method, f"{router}{path}", json=OTHERS.get(path) or BODIES.get(path)
        )
        assert (answer.status_code, answer.text) == (404, "")
        return False

    return passes_on


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


def ask(url, path, **options):
    limit = LIMIT.get(path, "max_tokens")
    options = {limit if name == "limit" else name: value for name, value in options.items()}
    body = {"model": MODEL, **BODIES[path], "temperature": 0, **options}
    return httpx2.post(f"{url}{path}", json=body, timeout=PATIENCE)


def without_ids(value):
    """An answer without what differs from one to the next."""
    if isinstance(value, list):
        return [without_ids(each) for each in value]
    if isinstance(value, dict):
        changing = ("id", "item_id", "created", "created_at", "usage", "stop_reason")
        changing += ("top_p",)  # SGLang's router adds its own default, without effect here
        return {name: without_ids(each) for name, each in value.items() if name not in changing}
    return value


@pytest.mark.parametrize("path", BODIES)
def test_an_answer_is_the_servers_own(router, server, path, passes_on):
    if passes_on(path):
        answer, own = (ask(url, path, limit=12).json() for url in (router, server.url))
        assert without_ids(answer) == without_ids(own)


@pytest.mark.parametrize("path", BODIES)
def test_a_stream_is_the_servers_own(router, server, path, passes_on):
    if passes_on(path):
        found, own = (
            pieces_of(ask(url, path, limit=12, stream=True)) for url in (router, server.url)
        )
        assert len(found) > 1
        assert "".join(found) == "".join(own)


def pieces_of(answer):
    """The pieces of text in a stream."""
    lines = [line for line in answer.text.splitlines() if line.startswith("data: {")]
    return [*filter(None, (piece_of(json.loads(line.removeprefix("data: "))) for line in lines))]


def piece_of(event):
    match event:
        case {"choices": [{"text": text}]} | {"choices": [{"delta": {"content": text}}]}:
            return text
        case {"type": "response.output_text.delta", "delta": text}:
            return text
        case {"type": "content_block_delta", "delta": {"text": text}}:
            return text
    return None


@pytest.mark.parametrize("path", OTHERS)
def test_an_endpoint_without_choices_passes_through(router, server, path, passes_on):
    if passes_on(path):
        body = OTHERS[path]
        found, own = (
            httpx2.get(f"{url}{path}") if body is None else httpx2.post(f"{url}{path}", json=body)
            for url in (router, server.url)
        )
        assert found.status_code == 200
        if found.headers["content-type"] == "application/json":
            found, own = (each.json() for each in (found, own))
            assert keys_of(found) == keys_of(own)
            if body is not None:
                assert found == own


def keys_of(value):
    """The keys of an object, and of the objects in it."""
    return {name: keys_of(each) for name, each in value.items()} if isinstance(value, dict) else ...


def test_metrics_of_the_servers_pass_through(router, passes_on):
    own = "/metrics" if passes_on("/metrics") else "/engine_metrics"  # names with underscores
    found = httpx2.get(f"{router}{own}").text
    assert re.search(r"^vllm.num_requests_running\{.*\} ", found, re.MULTILINE)


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
def test_a_cancelled_stream_ends_its_request_at_the_server(router, backends, path, passes_on):
    if not passes_on(path):
        return
    limit = LIMIT.get(path, "max_tokens")
    body = {"model": MODEL, **BODIES[path], "stream": True, limit: LONG, "ignore_eos": True}
    before = sum(total(backend, "vllm:generation_tokens_total") for backend in backends)
    with httpx2.stream("POST", f"{router}{path}", json=body, timeout=PATIENCE) as answer:
        next(line for line in answer.iter_lines() if line.startswith("data: "))
    until(lambda: all(total(each, "vllm:num_requests_running") == 0 for each in backends))
    after = sum(total(backend, "vllm:generation_tokens_total") for backend in backends)
    assert 0 < after - before < LONG
