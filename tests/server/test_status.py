"""What a server tells of itself, and its tokenizer."""

import asyncio

import httpx2
import pytest

from minimal_vllm import __version__
from minimal_vllm.server.app import make_app
from minimal_vllm.server.http_server import bind
from tests.server.harness import MODEL, PATIENCE, make_demo_service, metric, running, until


def test_the_models_are_listed(client):
    (model,) = client.models.list().data
    assert (model.id, model.max_model_len) == (MODEL, 2048)
    assert client.models.retrieve(MODEL).id == MODEL


def test_health_ping_and_version(server):
    assert server.get("/health").json() == {"status": "ok"}
    assert server.get("/ping").status_code == 200
    assert server.post("/ping").status_code == 200
    assert server.get("/version").json() == {"version": __version__}


def test_the_summary_says_what_is_served_and_where(server):
    for part in (MODEL, "11,015,808", "8,192 tokens (512 blocks of 16)", "tiled", server.url):
        assert part in server.summary


def test_while_the_model_is_loaded_nobody_can_connect():
    # ``serve`` binds its address before it loads the model.
    with bind("127.0.0.1", 0) as listener, pytest.raises(httpx2.ConnectError):
        httpx2.get("http://{}:{}/health".format(*listener.getsockname()))


def test_health_tells_of_a_dead_engine():
    async def run():
        service = make_demo_service()

        def fail():
            raise RuntimeError("all is lost")

        service.llm.engine.scheduler.schedule = fail
        await service.engine.start()
        transport = httpx2.ASGITransport(make_app(service))
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.get("/health")).status_code == 200
            await client.post("/v1/completions", json={"prompt": "a"})
            await until(lambda: service.engine.refusal)
            health = await client.get("/health")
            assert health.status_code == 503
            assert "all is lost" in health.json()["error"]["message"]

    asyncio.run(run())


def test_a_text_and_its_tokens_can_be_turned_into_each_other(server, llm):
    text = "Fürwahr, a 🦙!"
    given = server.post("/tokenize", prompt=text, return_token_strs=True).json()
    assert given["tokens"] == llm.tokenizer.encode(text)
    assert (given["count"], given["max_model_len"]) == (len(given["tokens"]), 2048)
    assert given["token_strs"] == llm.get_tokenizer().convert_ids_to_tokens(given["tokens"])
    assert server.post("/tokenize", prompt=text).json()["token_strs"] is None
    assert server.post("/detokenize", tokens=given["tokens"]).json() == {"prompt": text}


def test_a_conversation_is_tokenized_as_it_would_be_served(server, llm):
    messages = [{"role": "user", "content": "Hello"}]
    given = server.post("/tokenize", messages=messages).json()["tokens"]
    assert given == llm.tokenizer.encode(llm.render_chat(messages))


@pytest.mark.parametrize("tokens", [[-1], [4096], [10**20], ["a"]])
def test_what_is_no_token_can_t_be_turned_into_text(server, tokens):
    response = server.post("/detokenize", tokens=tokens)
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("tokens")


def test_the_metrics_have_vllm_s_names_and_true_values():
    async def run():
        prompt = "It was a dark and stormy night, and " * 4
        body = {"prompt": prompt, "ignore_eos": True, "max_tokens": 8}
        async with running(make_demo_service()) as url, httpx2.AsyncClient() as client:
            for _ in range(2):
                answer = await client.post(f"{url}/v1/completions", json=body, timeout=PATIENCE)
            return answer.json()["usage"], (await client.get(f"{url}/metrics")).text

    usage, text = asyncio.run(run())
    num_prompt, num_cached = usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]
    assert num_cached > 0
    for name, value in {
        "num_requests_running": 0,
        "num_requests_waiting": 0,
        "kv_cache_usage_perc": 0,
        "prefix_cache_queries_total": 2 * num_prompt,
        "prefix_cache_hits_total": num_cached,
        "num_preemptions_total": 0,
        "prompt_tokens_total": 2 * num_prompt,
        "generation_tokens_total": 16,
        "iteration_tokens_total_count": 16,
        "iteration_tokens_total_sum": 2 * num_prompt - num_cached + 16,
        "request_num_preemptions_count": 2,
        "request_prompt_tokens_sum": 2 * num_prompt,
        "request_generation_tokens_sum": 16,
        "time_to_first_token_seconds_count": 2,
        "inter_token_latency_seconds_count": 14,
        "request_time_per_output_token_seconds_count": 2,
        "e2e_request_latency_seconds_count": 2,
        "request_queue_time_seconds_count": 2,
        "request_prefill_time_seconds_count": 2,
        "request_decode_time_seconds_count": 2,
        "request_inference_time_seconds_count": 2,
    }.items():
        assert metric(text, f"vllm:{name}", model_name=MODEL) == value, name
    ended = "vllm:request_success_total"
    assert metric(text, ended, finished_reason="length") == 2
    assert metric(text, ended, finished_reason="abort") == 0
    parts = ("queue_time", "prefill_time", "decode_time")
    total = sum(metric(text, f"vllm:request_{part}_seconds_sum") for part in parts)
    assert total <= metric(text, "vllm:e2e_request_latency_seconds_sum")


def test_a_preempted_request_is_admitted_and_counted_once():
    async def run():
        service = make_demo_service(num_gpu_blocks_override=24, max_model_len=256)
        await service.engine.start()
        transport = httpx2.ASGITransport(make_app(service))
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            body = {"prompt": "It was", "n": 3, "max_tokens": 200, "ignore_eos": True}
            usage = (await client.post("/v1/completions", json=body)).json()["usage"]
            text = (await client.get("/metrics")).text
        await service.engine.stop()
        assert metric(text, "vllm:num_preemptions_total") > 0
        assert metric(text, "vllm:request_queue_time_seconds_count") == 3
        assert metric(text, "vllm:prompt_tokens_total") == 3 * usage["prompt_tokens"]
        assert metric(text, "vllm:generation_tokens_total") == 600

    asyncio.run(run())
