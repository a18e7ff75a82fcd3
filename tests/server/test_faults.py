"""Steps that fail, under traffic: who was in them is told why, and nobody else notices."""

import asyncio
import json

import httpx2
import pytest

from minimal_vllm import SamplingParams
from tests.server.harness import FEW_BLOCKS, PATIENCE, make_demo_service, metric, running, until

NUM_CLIENTS = 20
REASON = "the engine failed: RuntimeError: out of luck"
FIELDS = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}


def prompt(number):
    return f"It was a dark and stormy night number {number}, and the old captain"


def break_steps(service, is_bad):
    """Let the model's forward fail in some steps, counted from 0."""
    model = service.llm.engine._runner._model.decoder
    forward, steps = model.forward, iter(range(10**6))

    def maybe_fail(*arguments, **options):
        if is_bad(next(steps)):
            raise RuntimeError("out of luck")
        return forward(*arguments, **options)

    model.forward = maybe_fail


async def ask(client, url, number):
    """A completion's text and the error in whose place it came, streamed to every other client."""
    body = {"prompt": prompt(number), **FIELDS, "stream": number % 2 == 0}
    response = await client.post(f"{url}/v1/completions", json=body)
    if not body["stream"] or response.status_code != 200:
        answer = response.json()
        error = answer.get("error")
        assert response.status_code == (500 if error else 200)
        return "" if error else answer["choices"][0]["text"], error
    *events, done = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert done == "[DONE]"
    events = [json.loads(event) for event in events]
    error = events.pop()["error"] if "error" in events[-1] else None
    return "".join(event["choices"][0]["text"] for event in events), error


@pytest.mark.parametrize("every", [4, 15])
def test_of_twenty_clients_those_in_a_failed_step_get_its_reason_and_the_others_their_text(
    every, llm
):
    async def run():
        service = make_demo_service(max_num_seqs=4)
        break_steps(service, lambda step: step % every == every - 1)
        async with running(service) as url, httpx2.AsyncClient(timeout=PATIENCE) as client:
            results = await asyncio.gather(*(ask(client, url, i) for i in range(NUM_CLIENTS)))
            scheduler = service.llm.engine.scheduler
            await until(lambda: not scheduler.has_work)
            scheduler.check()
            assert scheduler.pool.num_free == FEW_BLOCKS
            assert (await client.get(f"{url}/health")).status_code == 200
            text = (await client.get(f"{url}/metrics")).text
            del service.llm.engine._runner._model.decoder.forward  # and the class's is back
            answers = [await ask(client, url, i) for i in range(2)]
        return results, text, answers

    results, metrics, answers = asyncio.run(run())
    prompts = [prompt(i) for i in range(NUM_CLIENTS)]
    alone = llm.generate(prompts, SamplingParams(**FIELDS), use_tqdm=False)
    texts = [output.outputs[0].text for output in alone]
    failed = [error for _, error in results if error]
    assert {error["message"] for error in failed} == {REASON}
    assert {error["type"] for error in failed} == {"server_error"}
    assert metric(metrics, "vllm:request_success_total", finished_reason="error") == len(failed)
    for (text, error), expected in zip(results, texts, strict=True):
        assert expected.startswith(text) if error else text == expected
    if every == 15:  # 8 steps suffice for a completion, so that some got through
        assert 0 < len(failed) < NUM_CLIENTS
    assert [text for text, _ in answers] == texts[:2]


STREAMS = {
    "/v1/responses": {"input": "Hello", "max_output_tokens": 20},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20},
}


@pytest.mark.parametrize("path", STREAMS)
def test_a_stream_of_the_agents_apis_ends_with_the_reason_in_its_own_form(path):
    async def run():
        service = make_demo_service()
        break_steps(service, lambda step: step == 4)
        body = {**STREAMS[path], "ignore_eos": True, "stream": True}
        async with running(service) as url, httpx2.AsyncClient(timeout=PATIENCE) as client:
            return await client.post(f"{url}{path}", json=body)

    response = asyncio.run(run())
    lines = [line.removeprefix("data: ") for line in response.text.splitlines()]
    events = [json.loads(line) for line in lines if line.startswith("{")]
    if path == "/v1/messages":
        assert events[-1] == {"type": "error", "error": {"type": "api_error", "message": REASON}}
        return
    assert (events[-2]["type"], events[-2]["message"]) == ("error", REASON)
    assert events[-1]["type"] == "response.failed"
    failed = events[-1]["response"]
    assert failed["status"] == "failed"
    assert failed["error"] == {"code": "server_error", "message": REASON}
    assert [each["sequence_number"] for each in events] == list(range(len(events)))
