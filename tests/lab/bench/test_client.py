"""The client measures streams correctly, and survives everything that a server should not do."""

import asyncio
import json
import time
from collections import Counter
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from minimal_vllm_lab.bench.client import WORDS, connect, send_all
from minimal_vllm_lab.bench.config import Load
from minimal_vllm_lab.bench.workload import SampleRequest
from minimal_vllm_lab.stats.guesses import GuessCounts

USAGE = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}
REQUEST = SampleRequest([0, 1, 2], 3)


def text(content):
    return {"choices": [{"text": content}]}


def delta(finish_reason=None, **fields):
    return {"choices": [{"delta": fields, "finish_reason": finish_reason}]}


class Server:
    """Answers each request with these events, when ``together`` of them are there.

    ``bodies`` is what it was sent.
    """

    def __init__(self, events, status=200, tokens=None, together=1):
        self.events, self.status, self.tokens = events, status, tokens
        self.barrier = asyncio.Barrier(together)
        self.bodies, self.keys = [], set()
        self.running = self.max_running = 0
        self.metrics = ""

    async def complete(self, request):
        self.bodies.append(await request.json())
        self.keys.add(request.headers.get("authorization"))
        if self.status != 200:
            return web.json_response({"error": {"message": "no luck"}}, status=self.status)
        self.running += 1
        self.max_running = max(self.running, self.max_running)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await self.barrier.wait()
        for event in self.events:
            written = event if isinstance(event, str) else json.dumps(event)
            await response.write(f"data: {written}\n\n".encode())
        self.running -= 1
        return response

    async def models(self, _request):
        return web.json_response({"data": [{"id": "first"}, {"id": "second"}]})

    async def tokenize(self, request):
        if self.tokens is None:
            return web.Response(status=404, text="not found")
        return web.json_response({"tokens": self.tokens})

    async def answer_metrics(self, _request):
        return web.Response(text=self.metrics, status=200 if self.metrics else 404)

    @asynccontextmanager
    async def client(self, **options):
        app = web.Application()
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/tokenize", self.tokenize)
        app.router.add_get("/metrics", self.answer_metrics)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0]
        try:
            async with connect(Load(host=host, port=port, **options)) as client:
                yield client
        finally:
            await runner.cleanup()

    def send(self, **options):
        async def send():
            async with self.client(**options) as client:
                return await client.send(REQUEST)

        return asyncio.run(send())


def test_a_completion_is_measured_event_by_event_and_counted_by_the_server():
    outcome = Server([text("a"), text("b"), USAGE, "[DONE]"]).send()
    assert outcome.error == ""
    assert (outcome.prompt_len, outcome.output_tokens, outcome.generated_text) == (5, 3, "ab")
    assert len(outcome.itl) == 1
    assert outcome.latency >= outcome.ttft > 0


def test_chat_events_without_content_are_no_tokens():
    events = [
        delta(role="assistant", content=""),
        delta(content="a"),
        delta(reasoning_content="hm"),
        delta(content="b"),
        delta("stop"),
        USAGE,
        "[DONE]",
    ]
    outcome = Server(events).send(endpoint="/v1/chat/completions")
    assert (outcome.error, outcome.generated_text, len(outcome.itl)) == ("", "ab", 2)


def test_a_chat_whose_tokens_have_no_text_still_ends():
    events = [delta(role="assistant"), delta("length"), USAGE, "[DONE]"]
    outcome = Server(events).send(endpoint="/v1/chat/completions")
    assert outcome.error == ""
    assert outcome.ttft == outcome.latency > 0


@pytest.mark.parametrize(
    ("events", "complaint"),
    [
        ([text("a"), USAGE], "the stream ended without [DONE]"),
        ([text("a"), {"error": {"message": "no luck"}}, "[DONE]"], "no luck"),
        ([USAGE, "[DONE]"], "the stream contained no token"),
        ([text("a"), "[DONE]"], "the stream contained no usage"),
        (["nonsense"], "JSONDecodeError"),
        ([text("a"), {"usage": {"prompt_tokens": 5}}], "KeyError"),
    ],
)
def test_an_incomplete_stream_is_a_failure_with_a_reason(events, complaint):
    assert complaint in Server(events).send().error


def test_an_error_is_reported_with_its_status_and_message():
    assert Server([], status=503).send().error == "HTTP 503: no luck"


def test_prompts_are_token_ids_if_the_server_tokenizes():
    server = Server([text("a"), USAGE, "[DONE]"], tokens=[7, 9, 7, 8])
    server.send(ignore_eos=False, extra_body={"temperature": 0})
    assert server.bodies == [
        {
            "model": "first",
            "prompt": [7, 9, 8],
            "max_tokens": 3,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
        }
    ]


@pytest.mark.parametrize("tokens", [None, []])
def test_otherwise_prompts_are_as_many_words(tokens):
    server = Server([text("a"), USAGE, "[DONE]"], tokens=tokens)
    server.send(model="mine")
    (body,) = server.bodies
    assert (body["model"], body["prompt"]) == ("mine", " ".join(WORDS[:3]))
    assert body["ignore_eos"] is True


def test_a_conversation_is_one_message_of_words():
    server = Server([delta(content="a"), USAGE, "[DONE]"], tokens=[7, 8, 9])
    server.send(endpoint="/v1/chat/completions")
    (body,) = server.bodies
    assert body["messages"] == [{"role": "user", "content": " ".join(WORDS[:3])}]
    assert body["max_completion_tokens"] == 3


@pytest.mark.parametrize(("key", "header"), [("secret", "Bearer secret"), (None, None)])
def test_the_key_is_the_environment_s(monkeypatch, key, header):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    server = Server([text("a"), USAGE, "[DONE]"])
    assert server.send().error == ""
    assert server.keys == {header}


@pytest.mark.parametrize(("limit", "expected"), [(None, 12), (3, 3)])
def test_max_concurrency_limits_the_requests_in_progress(limit, expected):
    server = Server([text("a"), USAGE, "[DONE]"], together=expected)

    async def run():
        async with server.client() as client:
            return await send_all(client, [REQUEST] * 12, [0.0] * 12, limit)

    assert [each.error for each in asyncio.run(run())] == [""] * 12
    assert server.max_running == expected


def test_requests_are_sent_at_their_times_and_none_waits_for_another():
    server = Server([text("a"), USAGE, "[DONE]"], together=3)

    times = [0.2, 0.0, 0.1]

    async def run():
        async with server.client() as client:
            begun = time.perf_counter()
            outcomes = await send_all(client, [REQUEST] * 3, times)
            return [each.start_time - begun for each in outcomes]

    starts = asyncio.run(run())
    assert all(start >= at - 0.01 for start, at in zip(starts, times, strict=True))
    assert server.max_running == 3


def test_a_server_without_models_is_an_error_that_says_what_to_do():
    server = Server([])

    async def models(_request):
        return web.Response(status=404, text="not found")

    server.models = models
    with pytest.raises(ValueError, match=r"lists no models \(HTTP 404: not found\).*--model"):
        server.send()


METRICS = """# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="num_draft_tokens"} 3.0
vllm:spec_decode_num_drafts_total{engine="1",model_name="num_draft_tokens"} 2.0
# TYPE vllm:spec_decode_num_draft_tokens_total counter
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} 12.0
vllm:spec_decode_num_draft_tokens_created{engine="0",model_name="m"} 1.7e+09
# TYPE vllm:spec_decode_num_accepted_tokens_total counter
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 6.0
# TYPE vllm:spec_decode_num_accepted_tokens_per_pos_total counter
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} 4.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="1"} 2.0
"""
"""Metrics as vLLM writes them, of two engines."""


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (METRICS, GuessCounts(5, 12, Counter({0: 4, 1: 2}))),
        ("# TYPE up gauge\nup 1\n", GuessCounts()),
        ("<html>no metrics</html>", None),
        ("", None),
    ],
    ids=["vllm", "no speculation", "nonsense", "none"],
)
def test_guesses_are_counted_by_the_server_s_metrics(metrics, expected):
    async def count():
        server = Server([])
        server.metrics = metrics
        async with server.client() as client:
            return await client.count_guesses()

    assert asyncio.run(count()) == expected
