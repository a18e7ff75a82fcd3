"""Answers hold what vLLM's hold, so that programs that were written for it find it."""

import asyncio
import logging
import re

import httpx2
import pytest

from tests.server.harness import (
    MODEL,
    PATIENCE,
    TOOL_MODEL,
    Gate,
    make_demo_service,
    open_request,
    running,
    until,
)

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hi"}]


def test_absent_values_are_nulls(server):
    answer = server.post(CHAT, messages=HELLO, max_tokens=2).json()
    (choice,) = answer["choices"]
    names = ("prompt_logprobs", "prompt_token_ids", "system_fingerprint", "service_tier")
    assert [answer[name] for name in names] == [None] * 4
    assert [choice[name] for name in ("logprobs", "token_ids", "stop_reason")] == [None] * 3
    names = ("refusal", "annotations", "audio", "function_call", "reasoning", "reasoning_content")
    assert [choice["message"][name] for name in names] == [None] * 6
    assert choice["message"]["tool_calls"] == []
    (choice,) = server.post(COMPLETIONS, prompt="a", max_tokens=2).json()["choices"]
    assert [choice[name] for name in ("prompt_logprobs", "prompt_token_ids")] == [None] * 2


def chunks_of(server, path, **options):
    body = {"messages": HELLO} if path == CHAT else {"prompt": "a"}
    model = server.client()
    create = model.chat.completions.create if path == CHAT else model.completions.create
    return list(create(model=MODEL, stream=True, max_tokens=4, **body, **options))


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_chunks_have_usage_only_if_it_is_asked_for(server, path):
    options = {"include_usage": False, "continuous_usage_stats": True}
    chunks = chunks_of(server, path, stream_options=options)
    assert all(chunk.usage is None for chunk in chunks)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_usage_counts_no_token_before_its_text(server, path):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = chunks_of(server, path, stream_options=options, seed=1)
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts[0] == (0 if path == CHAT else 1)
    assert counts == sorted(counts)
    assert counts[-2:] == [4, 4]


def test_names_of_top_tokens_are_told_apart_and_the_chosen_one_comes_first(server):
    body = {"prompt": "a", "structured_outputs": {"regex": "é"}, "logprobs": 5, "max_tokens": 2}
    choice = server.post(COMPLETIONS, **body).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert choice["text"] == "é"
    for token, top in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True):
        assert len(top) in (5, 6)
        assert next(iter(top)) == token
    assert "".join(logprobs["tokens"]) in ("é", r"bytes:\xc3bytes:\xa9")


@pytest.mark.parametrize("as_tokens", [True, False])
def test_an_echo_and_its_offsets_have_the_special_tokens(tool_server, as_tokens):
    (special,) = tool_server.post("/tokenize", prompt="<|im_end|>").json()["tokens"]
    (a, b) = tool_server.post("/tokenize", prompt="ab").json()["tokens"]
    prompt = [special, a, special, b] if as_tokens else "a<|im_end|>b"
    body = {"prompt": prompt, "echo": True, "logprobs": 0, "max_tokens": 1}
    choice = tool_server.post(COMPLETIONS, **body).json()["choices"][0]
    offsets = choice["logprobs"]["text_offset"][:-1]
    if as_tokens:
        assert choice["text"].startswith("<|im_end|>a<|im_end|>b")
        assert offsets == [0, 10, 11, 21]
    else:
        assert choice["text"].startswith("a<|im_end|>b")
        assert offsets == [0, 1, 11]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompt_is_shortened_on_the_side_that_is_named(server, side):
    tokens = server.post("/tokenize", prompt="It was a dark and stormy night").json()["tokens"]
    kept = tokens[-3:] if side == "left" else tokens[:3]
    body = {"truncation_side": side, "return_token_ids": True, "echo": True, "max_tokens": 1}
    body["temperature"] = 0
    choice = server.post(COMPLETIONS, prompt=tokens, truncate_prompt_tokens=3, **body).json()[
        "choices"
    ][0]
    assert choice["prompt_token_ids"] == kept
    assert choice["text"].startswith(server.post("/detokenize", tokens=kept).json()["prompt"])
    text = {"prompt": "It was a dark and stormy night", "truncate_prompt_tokens": 3}
    assert server.post(COMPLETIONS, **text, **body).json()["choices"][0] == choice


def test_a_prompt_is_shortened_to_what_leaves_room_for_the_answer(server):
    body = {"return_token_ids": True, "truncate_prompt_tokens": -1, "max_tokens": 8}
    choice = server.post(COMPLETIONS, prompt=list(range(5, 105)) * 30, **body).json()["choices"][0]
    assert len(choice["prompt_token_ids"]) == 2040
    assert len(choice["token_ids"]) <= 8
    chat = server.post(CHAT, messages=[{"role": "user", "content": "a " * 3000}], **body)
    assert chat.status_code == 200
    assert len(chat.json()["prompt_token_ids"]) == 2040
    body |= {"prompt": "a", "truncate_prompt_tokens": 2041}
    refusal = server.post(COMPLETIONS, **body)
    assert (refusal.status_code, refusal.json()["error"]["param"]) == (
        400,
        "truncate_prompt_tokens",
    )


@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_of_a_chat_begins_with_the_message_that_is_continued(server, stream):
    body = {
        "model": MODEL,
        "messages": [*HELLO, {"role": "assistant", "content": "Good evening"}],
        "max_tokens": 8,
        "temperature": 0,
        "extra_body": {"add_generation_prompt": False, "continue_final_message": True},
    }
    plain = server.client().chat.completions.create(**body).choices[0].message.content
    body["extra_body"]["echo"] = True
    answer = server.client().chat.completions.create(**body, stream=stream)
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    else:
        text = answer.choices[0].message.content
    assert text == "Good evening" + plain


def test_an_echo_of_a_chat_leaves_out_the_users_message(server):
    body = {"messages": HELLO, "max_tokens": 8, "temperature": 0}
    plain, echoed = (server.post(CHAT, **body, echo=echo).json() for echo in (False, True))
    assert plain["choices"] == echoed["choices"]


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_can_be_left_out(script, stream):
    tool = {"type": "function", "function": {"name": "turn"}}
    body = {"model": "script", "messages": HELLO, "tools": [tool], "stream": stream}
    answer = script.client().chat.completions.create(
        **body, extra_body={"include_reasoning": False}
    )
    parts = [chunk.choices[0].delta for chunk in answer] if stream else [answer.choices[0].message]
    assert not any(getattr(part, "reasoning", None) for part in parts)
    assert any(part.tool_calls for part in parts)
    if not stream:
        assert answer.usage.completion_tokens_details.reasoning_tokens == 3


@pytest.mark.parametrize("stream", [False, True])
def test_usage_tells_how_many_tokens_were_reasoning(tool_server, stream):
    def token(text):
        return str(tool_server.post("/tokenize", prompt=text).json()["tokens"][0])

    bias = {token(word): 100 for word in ("<think>", "the", "</think>", "<|endoftext|>")}
    answer = tool_server.client().chat.completions.create(
        model=TOOL_MODEL,
        messages=HELLO,
        max_tokens=60,
        seed=5,
        temperature=10,
        logit_bias=bias,
        stream=stream,
        stream_options={"include_usage": True} if stream else None,
        extra_body={"structured_outputs": {"regex": "[0-9]{4}"}, "return_token_ids": True},
    )
    if stream:
        chunks = list(answer)
        usage = chunks[-1].usage
        token_ids = [
            token_id
            for chunk in chunks[:-1]
            for token_id in getattr(chunk.choices[0], "token_ids", None) or ()
        ]
    else:
        usage, token_ids = answer.usage, answer.choices[0].token_ids
    expected = token_ids.index(int(token("</think>"))) + 1
    assert usage.completion_tokens_details.reasoning_tokens == expected


def test_a_client_s_request_id_comes_back(server):
    headers = {"x-request-id": "mine-1"}
    for _ in range(2):  # the same twice is no conflict
        response = server.request(
            "POST", COMPLETIONS, json={"prompt": "a", "max_tokens": 1}, headers=headers
        )
        assert response.headers["x-request-id"] == "mine-1"
        assert response.json()["id"].startswith("cmpl-mine-1-")
    response = server.get("/v1/models", headers={"x-request-id": "not one"})
    assert response.headers["x-request-id"] != "not one"


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/version", "/metrics", "/load"])
def test_head_is_answered_like_get_without_a_body(server, path):
    head, get = server.request("HEAD", path), server.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert server.request("HEAD", COMPLETIONS).status_code == 405


def test_load_and_the_tokenizer_s_configuration_are_told(server):
    assert server.get("/load").json() == {"server_load": 0}
    assert "{" in server.get("/tokenizer_info").json()["chat_template"]


def test_the_log_tells_what_was_generated_for_a_client_that_left(caplog):
    async def run():
        gate = Gate()
        service = make_demo_service(gate)
        async with running(service) as url:
            gate.shut()
            _, writer = await open_request(url, COMPLETIONS, {"prompt": "a", "max_tokens": 50})
            await until(lambda: service.engine.num_waiting or service.engine.num_running)
            await gate.wait_until_held()
            await gate.step(3)
            writer.close()
            async with httpx2.AsyncClient(timeout=PATIENCE) as client:
                await until(lambda: not service.engine._readers)
                gate.open()
                await client.get(f"{url}/health")
                await until(lambda: "the client went away" in caplog.text)

    with caplog.at_level(logging.INFO, logger="minimal_vllm"):
        asyncio.run(run())
    (count,) = re.findall(r"completion_tokens=(\d+) .* end='the client went away'", caplog.text)
    assert int(count) >= 3
