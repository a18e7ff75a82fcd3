"""With the engine in its own process, clients get the same bytes, but for ids and times."""

import asyncio
import json
import re
import time

import httpx2
import pytest

from tests.server.harness import PATIENCE, metric, process

FIXED = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
PROMPT = "It was a dark and stormy night, and"
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
USAGE = {"include_usage": True, "continuous_usage_stats": True}

COMPLETIONS = {
    "plain": {},
    "sampled": {"temperature": 1, "seed": 5, "n": 3, "max_tokens": 20},
    "end of text": {"ignore_eos": False, "max_tokens": 200, "seed": 3, "temperature": 1},
    "logprobs": {"logprobs": 2, "return_token_ids": True},
    "echo": {"echo": True, "logprobs": 1},
    "prompt logprobs": {"prompt_logprobs": 1},
    "stop string": {"stop": ["the", "ight"], "max_tokens": 60},
    "stop string kept": {"stop": "a", "include_stop_str_in_output": True, "max_tokens": 60},
    "stop string and logprobs": {"stop": "the", "logprobs": 1, "max_tokens": 60},
    "stop token": {"stop_token_ids": list(range(260, 400)), "max_tokens": 60},
    "stop token kept": {
        "stop_token_ids": list(range(260, 400)),
        "include_stop_str_in_output": True,
        "max_tokens": 60,
    },
    "special tokens": {"skip_special_tokens": False, "logit_bias": {"0": 100}},
    "schema": {"structured_outputs": {"json": SCHEMA}, "ignore_eos": False, "max_tokens": 60},
    "schema and stop string": {
        "structured_outputs": {"json": SCHEMA},
        "ignore_eos": False,
        "stop": "1",
        "max_tokens": 60,
    },
    "no token allowed": {"allowed_token_ids": [5], "logit_bias": {}, "bad_words": ["x"]},
    "too long": {"prompt": [5] * 5000},
    "bad token": {"prompt": [99999]},
    "negative token": {"prompt": [-1]},
    "token beyond 32 bits": {"prompt": [2**31]},
    "token beyond 64 bits": {"prompt": [2**64]},
    "bad parameter": {"top_p": 3},
    "bad schema": {"structured_outputs": {"regex": "("}},
    "priority": {"priority": 3},
}
OTHERS = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Good evening."}], **FIXED},
    "/v1/responses": {"input": "Hello", "max_output_tokens": 12, "temperature": 0},
    "/v1/messages": {
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 12,
        "temperature": 0,
    },
    "/tokenize": {"prompt": PROMPT, "return_token_strs": True},
    "/detokenize": {"tokens": [40, 453, 79]},
}
CHANGING = re.compile(r'"(id|item_id|created|created_at|completed_at)":("[^"]*"|[0-9.]+)')


@pytest.fixture(scope="module")
def servers():
    options = ("--scheduling-policy=fcfs",)
    with process(*options) as one, process("--api-server-count=2", *options) as several:
        yield one, several


def answers(server, requests):
    """Status and body of each request, sent one after the other."""
    results = []
    for path, body in requests:
        response = server.post(path, **body)
        results.append((response.status_code, CHANGING.sub(r'"\1":0', response.text)))
    return results


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", COMPLETIONS)
def test_completions_are_the_same(servers, name, stream):
    body = {"prompt": PROMPT, **FIXED, **COMPLETIONS[name], "stream": stream}
    if stream:
        body["stream_options"] = USAGE
    one, several = (texts(answers(server, [("/v1/completions", body)])) for server in servers)
    assert one == several


def texts(results):
    """Answers with the chunks of a stream put together, for chunks depend on the client's pace."""
    ((status, text),) = results
    if not text.startswith("data: "):
        return status, text
    events = [line.removeprefix("data: ") for line in text.splitlines() if line]
    chunks = [json.loads(event) for event in events[:-1]]
    choices = {}
    for chunk in chunks:
        for choice in chunk.get("choices", ()):
            merged = choices.setdefault(choice["index"], {"text": "", "tokens": [], "logprobs": []})
            merged["text"] += choice["text"]
            merged["tokens"] += choice.get("token_ids") or []
            merged["logprobs"] += (choice["logprobs"] or {}).get("token_logprobs", [])
            merged["ends"] = (choice["finish_reason"], choice["stop_reason"])
    return status, choices, chunks[-1].get("usage"), chunks[-1].get("error"), events[-1]


@pytest.mark.parametrize("path", OTHERS)
def test_the_other_endpoints_answer_the_same(servers, path):
    one, several = (answers(server, [(path, OTHERS[path])]) for server in servers)
    assert one == several


def test_metrics_count_the_requests_of_all_processes(servers):
    _, server = servers
    before = server.get("/metrics").text

    async def ask_all():
        limits = httpx2.Limits(max_keepalive_connections=0)
        async with httpx2.AsyncClient(timeout=PATIENCE, limits=limits) as client:
            body = {"prompt": PROMPT, **FIXED}
            url = f"{server.url}/v1/completions"
            return await asyncio.gather(*(client.post(url, json=body) for _ in range(40)))

    assert {each.status_code for each in asyncio.run(ask_all())} == {200}
    after = wait_for_count(server, http_count(before) + 40)

    def increase(name, **labels):
        return metric(after, name, **labels) - metric(before, name, **labels)

    assert increase("vllm:request_success_total", finished_reason="length") == 40
    assert increase("vllm:generation_tokens_total") == 40 * 12
    assert metric(after, "vllm:num_requests_running") == 0
    assert server.get("/load").json() == {"server_load": 0}


def http_count(text):
    """How many completions have been answered, according to the metrics."""
    found = re.search(r'http_requests_total{handler="/v1/completions".*status="2xx"} (\S+)', text)
    return float(found[1]) if found else 0


def wait_for_count(server, count):
    """The metrics once the processes have told of all requests, which they do behind the answer."""
    deadline = time.monotonic() + PATIENCE
    while http_count(text := server.get("/metrics").text) < count:
        assert time.monotonic() < deadline, text
    assert http_count(text) == count
    return text
