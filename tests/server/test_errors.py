"""Whatever clients send, they get OpenAI's error body, and it names the field."""

import asyncio
import json
import re
import socket

import httpx2
import openai
import pytest
from pydantic import ValidationError

from minimal_vllm.server.chat.request import ChatCompletionRequest
from minimal_vllm.server.completions import CompletionRequest
from minimal_vllm.server.tokens import DetokenizeRequest
from tests.server.harness import MODEL, PATIENCE, make_demo_service, running

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]
JSON = {"content-type": "application/json"}


def error_of(response):
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    return body["error"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("best_of", 2),
        ("suffix", "end"),
        ("guided_json", {"type": "object"}),
        ("functions", [{"name": "f"}]),
        ("audio", {"voice": "ash"}),
        ("modalities", ["audio"]),
        ("use_beam_search", True),
        ("never_heard_of", 0),
        ("int", 0),  # the names that pydantic has for the members of a union
        ("str", 0),
        ("[text]", 0),
        ("0", 0),
    ],
)
@pytest.mark.parametrize(
    ("path", "body"), [(COMPLETIONS, {"prompt": "a"}), (CHAT, {"messages": HELLO})]
)
def test_what_is_not_supported_is_refused_by_name(server, path, body, name, value):
    response = server.post(path, **body, **{name: value})
    assert response.status_code == 400
    error = error_of(response)
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    # What to use instead may follow.
    assert re.fullmatch(rf"{re.escape(name)}: not supported here(: \w.*)?", error["message"])


@pytest.mark.parametrize(
    ("name", "value"), [("tools", [{"type": "function"}]), ("tool_choice", "auto")]
)
def test_completions_call_no_tools(server, name, value):
    error = error_of(server.post(COMPLETIONS, prompt="a", **{name: value}))
    assert error["message"] == f"{name}: not supported here"


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "prompt", "prompt: missing"),
        ({"prompt": 5}, "prompt", "should be a valid string, not 5, or should be a valid list"),
        ({"prompt": []}, "prompt", "at least 1 item"),
        ({"prompt": [[5], ["a"]]}, "prompt.1.0", "should be a valid integer"),
        ({"prompt": [-1]}, "prompt.0", "greater than or equal to 0, not -1"),
        ({"prompt": [4096]}, "prompt", "prompt has 4096, but the model's tokens are"),
        ({"prompt": ""}, None, "the prompt is empty"),
        ({"prompt": [[5], []]}, None, "the prompt is empty"),
        ({"prompt": "a " * 3000}, "prompt", "maximum context length is 2048 tokens"),
        ({"prompt": "a", "top_p": 1.5}, "top_p", "less than or equal to 1, not 1.5"),
        ({"prompt": "a", "temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"prompt": "a", "temperature": "hot"}, "temperature", "should be a valid number"),
        ({"prompt": "a", "temperature": 0, "n": 2}, None, "n must be 1 with greedy sampling"),
        ({"prompt": "a", "n": 0}, "n", "greater than or equal to 1, not 0"),
        ({"prompt": "a", "n": 129}, "n", "(--max-choices)"),
        ({"prompt": ["a"] * 65, "n": 2}, "n", "(--max-choices)"),
        (
            {"prompt": "a", "max_tokens": 0, "echo": False},
            "max_tokens",
            "greater than or equal to 1, not 0",
        ),
        ({"prompt": "a", "min_tokens": 20}, None, "min_tokens (20) must not exceed max_tokens"),
        ({"prompt": "a", "logprobs": 21}, "logprobs", "max_logprobs is 20"),
        ({"prompt": "a", "stop": ["a"] * 65}, "stop", "at most 64 items"),
        ({"prompt": "a", "stop": ""}, "stop", "a stop string must not be empty"),
        ({"prompt": "a", "bad_words": ["a"] * 257}, "bad_words", "at most 256 items"),
        ({"prompt": "a", "bad_words": ["a" * 1001]}, "bad_words.0", "at most 1000 characters"),
        (
            {"prompt": "a", "logit_bias": dict.fromkeys(range(1025), 1)},
            "logit_bias",
            "1025 tokens are too many: at most 1024",
        ),
        (
            {"prompt": "a", "allowed_token_ids": [5] * 4097},
            "allowed_token_ids",
            "has 4097 tokens, but the model has only 4096",
        ),
        ({"prompt": "a", "seed": 2**63}, "seed", "less than 9223372036854775808"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias.x", "valid integer"),
        ({"prompt": "a", "logit_bias": {"9999": 1}}, "logit_bias", "logit_bias has 9999"),
        ({"prompt": "a", "request_id": "a\nb"}, "request_id", "should match pattern"),
        (
            {"prompt": "a", "stream_options": {"include_usage": True}},
            "stream_options",
            "needs stream=true",
        ),
        (
            {"prompt": "a", "stream": True, "stream_options": {"x": 1}},
            "stream_options.x",
            "not supported here",
        ),
        (
            {"prompt": "a", "stream": True, "prompt_logprobs": 1},
            "prompt_logprobs",
            "can't be streamed",
        ),
    ],
)
def test_a_bad_completion_request_is_a_400_that_says_what_is_wrong(server, body, param, message):
    response = server.post(COMPLETIONS, **body)
    assert response.status_code == 400
    error = error_of(response)
    assert error["type"] == "invalid_request_error"
    assert message in error["message"]
    assert error["param"] == param


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "messages", "messages: missing"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": ["Hello"]}, "messages.0", "should be a JSON object"),
        ({"messages": [{"content": "Hello"}]}, "messages.0.role", "missing"),
        ({"messages": [{"role": "user"}]}, "messages.0", "content is missing"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content.0.type",
            "should be 'text', not 'image_url'",
        ),
        (
            {"messages": HELLO, "response_format": "json_object"},
            "response_format",
            "response_format: should be a JSON object",
        ),
        ({"messages": HELLO, "top_logprobs": 2}, "top_logprobs", "needs logprobs=true"),
        (
            {"messages": HELLO, "logprobs": True, "top_logprobs": 21},
            "top_logprobs",
            "top_logprobs asks for 21, but max_logprobs is 20",
        ),
        ({"messages": HELLO, "function_call": "auto"}, "function_call", "use tools"),
        ({"messages": HELLO, "use_beam_search": True}, "use_beam_search", "LLM.beam_search"),
        ({"messages": HELLO, "logprob_token_ids": [1]}, "logprob_token_ids", "needs logprobs=true"),
        (
            {"messages": HELLO, "kv_transfer_params": {"do_remote_decode": True}},
            "kv_transfer_params",
            "one engine computes",
        ),
        (
            {"messages": HELLO, "max_completion_tokens": 0},
            "max_completion_tokens",
            "max_completion_tokens: should be greater than or equal to 1, not 0",
        ),
        ({"messages": HELLO, "continue_final_message": True}, "messages", "add_generation_prompt"),
        ({"messages": HELLO, "chat_template": "{% if"}, "messages", "not valid Jinja"),
        (
            {"messages": HELLO, "chat_template_kwargs": {"messages": [], "self": 1}},
            "chat_template_kwargs",
            "can't set messages, self",
        ),
    ],
)
def test_a_bad_chat_request_is_a_400_that_says_what_is_wrong(server, body, param, message):
    response = server.post(CHAT, **body)
    assert response.status_code == 400
    error = error_of(response)
    assert message in error["message"]
    assert error["param"] == param


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, "/tokenize", "/detokenize"])
@pytest.mark.parametrize(
    ("content", "headers", "message"),
    [
        (b'{"n": 1,}', JSON, "not valid JSON at character 8"),
        (b"", JSON, "the body should be a JSON object, sent as application/json"),
        (b"[]", JSON, "the body should be a JSON object, sent as application/json"),
        (b"{}", {}, "the body should be a JSON object, sent as application/json"),
        (
            b'{"prompt": "\xff"}',
            JSON,
            "can't be read as JSON: 'utf-8' codec can't decode byte 0xff",
        ),
        (b"[" * 100_000, JSON, "can't be read as JSON: maximum recursion depth"),
        (b'{"n": ' + b"9" * 10_000 + b"}", JSON, "can't be read as JSON: Exceeds the limit"),
    ],
)
def test_a_malformed_body_is_a_400(server, path, content, headers, message):
    response = server.request("POST", path, content=content, headers=headers)
    assert response.status_code == 400
    assert message in error_of(response)["message"]


def test_an_unknown_field_of_a_part_is_named_whatever_it_is_called(server):
    body = {"prompt": "a", "stream": True, "stream_options": {"str": 1}}
    error = error_of(server.post(COMPLETIONS, **body))
    assert (error["param"], error["code"]) == ("stream_options.str", "unsupported_parameter")


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "half \ud800"},
        {"prompt": ["a", "half \ud800"]},
        {"prompt": "a", "stop": "\ud800"},
        {"prompt": "a", "cache_salt": "\ud800"},
        {"prompt": "a", "\ud800": 1},
        {"prompt": "a", "logit_bias": {"\ud800": 1}},
        {"prompt": "a", "model": "\ud800"},
    ],
)
def test_half_of_a_surrogate_pair_is_the_client_s_error(server, body):
    content = json.dumps(body).encode()  # in which it is written as \ud800
    response = server.request("POST", COMPLETIONS, content=content, headers=JSON)
    assert response.status_code in (400, 404)
    assert error_of(response)["message"]


def test_half_of_a_surrogate_pair_in_a_message_is_the_client_s_error(server):
    body = {"messages": [{"role": "user", "content": "half \ud800"}]}
    for path in (CHAT, "/tokenize"):
        response = server.request("POST", path, content=json.dumps(body), headers=JSON)
        assert response.status_code == 400
        assert "surrogate" in error_of(response)["message"]


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (CompletionRequest, {"prompt": [None] * 100_000}),
        (CompletionRequest, {"prompt": [5] * 100_000 + ["a"]}),
        (CompletionRequest, {"prompt": [["a"] * 100_000] * 10}),
        (CompletionRequest, {"prompt": "a", "logit_bias": {f"x{i}": None for i in range(10_000)}}),
        (CompletionRequest, {"prompt": "a", "stop_token_ids": [None] * 10_000}),
        (CompletionRequest, {"prompt": "a", "bad_words": [None] * 10_000}),
        (CompletionRequest, {"prompt": "a", **{f"x{i}": 0 for i in range(10_000)}}),
        (ChatCompletionRequest, {"messages": [{}] * 100_000}),
        (ChatCompletionRequest, {"messages": [{"role": "user", "content": [{}] * 10_000}]}),
        (DetokenizeRequest, {"tokens": [None] * 100_000}),
    ],
)
def test_of_a_million_mistakes_few_are_written_down(model, body):
    """Else a body of some megabytes would stall the event loop for a minute."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    assert caught.value.error_count() < 10


@pytest.mark.parametrize(
    ("path", "field", "body"),
    [
        (COMPLETIONS, "prompt", {"prompt": [5] * 3000}),
        (CHAT, "messages", {"messages": [{"role": "user", "content": "a " * 3000}]}),
    ],
)
def test_libraries_recognize_the_error_of_a_prompt_that_is_too_long(server, path, field, body):
    error = error_of(server.post(path, **body))
    assert (error["code"], error["param"]) == ("context_length_exceeded", field)
    assert error["message"].startswith("This model's maximum context length is 2048 tokens.")


def test_infinity_is_no_number(server):
    content = b'{"prompt": "a", "temperature": Infinity}'
    response = server.request("POST", COMPLETIONS, content=content, headers=JSON)
    assert response.status_code == 400
    assert error_of(response)["param"] == "temperature"


def test_a_huge_body_is_a_413_whether_or_not_it_is_announced(server):
    def pieces():
        for _ in range(12):
            yield b" " * 2**20

    for content in (b" " * 12 * 2**20, pieces()):
        response = server.request("POST", COMPLETIONS, content=content, headers=JSON)
        assert response.status_code == 413
        assert "longer than 10,485,760 bytes" in error_of(response)["message"]


def test_a_body_that_is_cut_off_affects_no_other_request(server):
    request = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{"
    address = httpx2.URL(server.url)
    with socket.create_connection((address.host, address.port)) as connection:
        connection.sendall(request)
    assert server.get("/health").status_code == 200


def test_an_unknown_model_is_a_404_that_names_the_known(client):
    with pytest.raises(openai.NotFoundError, match=MODEL) as caught:
        client.completions.create(model="gpt-7", prompt="a")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-7", messages=HELLO)


def test_paths_and_methods_that_are_not_there_have_the_body_too(server):
    error = error_of(server.get("/v1/nothing"))
    assert error["type"] == "not_found_error"
    assert error["message"].startswith("there is no /v1/nothing: this server has ")
    assert "POST /v1/chat/completions" in error["message"]
    response = server.get(COMPLETIONS)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert error_of(response)["message"] == "Method Not Allowed"


def test_after_all_this_the_server_is_well(server):
    answer = server.post(COMPLETIONS, prompt="It was a dark", max_tokens=2)
    assert answer.status_code == 200


def test_a_cautious_server_takes_no_templates_and_no_priorities():
    async def run():
        async with running(make_demo_service()) as url, httpx2.AsyncClient() as client:
            for path, body, option in (
                (CHAT, {"messages": HELLO, "chat_template": "{{ 1 }}"}, "trust-request-chat"),
                (COMPLETIONS, {"prompt": "a", "priority": 1}, "scheduling-policy=priority"),
            ):
                refused = await client.post(f"{url}{path}", json=body, timeout=PATIENCE)
                assert refused.status_code == 400
                assert f"--{option}" in error_of(refused)["message"]

    asyncio.run(run())
