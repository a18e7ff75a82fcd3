"""What today's clients and routers send, which is more than the server has: none is turned away."""

from typing import get_type_hints

import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import chat, completion_create_params, responses
from pydantic import ValidationError

from minimal_vllm.server.api_model import FieldClass, dropped_keys
from minimal_vllm.server.chat.request import ChatCompletionRequest
from minimal_vllm.server.completions import CompletionRequest
from minimal_vllm.server.messages.request import CountTokensRequest, MessagesRequest
from minimal_vllm.server.responses.request import ResponsesRequest

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hi"}]
BODIES = {
    CompletionRequest: {"prompt": "a"},
    ChatCompletionRequest: {"messages": HELLO},
    ResponsesRequest: {"input": "a"},
    MessagesRequest: {"messages": HELLO, "max_tokens": 1},
    CountTokensRequest: {"messages": HELLO},
}


def fields(field_class):
    """``(model, field)`` for each field of one class."""
    return [
        pytest.param(model, name, id=f"{model.__name__}.{name}")
        for model in BODIES
        for name in model.names_of_class(field_class)
    ]


# ---- the classes of fields ----------------------------------------------------------------------


@pytest.mark.parametrize(("model", "name"), fields(FieldClass.BOOKKEEPING))
@pytest.mark.parametrize("value", [True, "text", {"k": "v"}, 0, []])
def test_bookkeeping_is_accepted_with_any_value_and_noted(model, name, value):
    body = model.model_validate(BODIES[model] | {name: value})
    assert body.given(FieldClass.BOOKKEEPING) == {name: value}


@pytest.mark.parametrize(("model", "name"), fields(FieldClass.ONLY_DEFAULT))
def test_a_feature_that_is_not_there_may_be_left_at_its_default_and_nothing_else(model, name):
    default = model.model_fields[name].default
    for value in (default, None, [], {}, ""):
        model.model_validate(BODIES[model] | {name: value})
    for value in (not default, "some value", ["some value"], 7):
        with pytest.raises(ValidationError, match="not supported here"):
            model.model_validate(BODIES[model] | {name: value})


@given(st.text(st.characters(codec="ascii", categories=["Ll"]), min_size=1), st.integers())
@settings(max_examples=50)
def test_an_unknown_field_is_an_error_unless_it_is_null(name, value):
    for model, body in BODIES.items():
        if name not in model.model_fields:
            model.model_validate(body | {name: None})
            with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
                model.model_validate(body | {name: value})


DECLARED = {
    completion_create_params.CompletionCreateParamsBase: CompletionRequest,
    chat.completion_create_params.CompletionCreateParamsBase: ChatCompletionRequest,
    responses.response_create_params.ResponseCreateParamsBase: ResponsesRequest,
    message_create_params.MessageCreateParamsBase: MessagesRequest,
    message_count_tokens_params.MessageCountTokensParams: CountTokensRequest,
}


@pytest.mark.parametrize("declared", DECLARED)
def test_every_field_that_a_client_declares_is_known_by_name(declared):
    """It works, changes nothing, or is refused with a reason."""
    assert get_type_hints(declared).keys() - DECLARED[declared].model_fields.keys() == set()


def test_hints_reach_the_template_and_yield_to_its_own_arguments():
    body = {"messages": HELLO, "reasoning_effort": "low", "documents": [{"title": "t"}]}
    variables = ChatCompletionRequest.model_validate(body).template_variables
    assert variables == {"reasoning_effort": "low", "documents": [{"title": "t"}]}
    body["chat_template_kwargs"] = {"reasoning_effort": "high"}
    variables = ChatCompletionRequest.model_validate(body).template_variables
    assert variables["reasoning_effort"] == "high"


FROM_SGLANG_ROUTER = {
    "logprobs": False,
    "stream": False,
    "no_stop_trim": False,
    "ignore_eos": False,
    "continue_final_message": False,
    "skip_special_tokens": True,
    "separate_reasoning": True,
    "stream_reasoning": True,
    "return_hidden_states": False,
}
FROM_VLLM_CLIENT = {
    "include_reasoning": True,
    "kv_transfer_params": None,
    "use_beam_search": False,
    "length_penalty": 1,
    "spaces_between_special_tokens": True,
    "truncate_prompt_tokens": None,
    "top_logprobs": 0,
    "echo": False,
    "tools": [],
    "tool_choice": "auto",
    "functions": [],
    "stop": [],
    "stop_token_ids": [],
    "bad_words": [],
    "logit_bias": {},
    "stream_options": {},
    "response_format": {"type": "text"},
}


@pytest.mark.parametrize("extra", [FROM_SGLANG_ROUTER, FROM_VLLM_CLIENT])
@pytest.mark.parametrize("name", ["server", "tool_server"])
def test_a_request_at_its_defaults_gets_the_answer_of_a_bare_one(request, name, extra):
    server = request.getfixturevalue(name)
    bare = {"messages": HELLO, "max_tokens": 4, "seed": 1}
    answer = server.post(CHAT, **bare, **extra)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"] == server.post(CHAT, **bare).json()["choices"]


# ---- history ------------------------------------------------------------------------------------


def call(arguments="{}", **others):
    function = {"name": "f", "arguments": arguments, **others.pop("function", {})}
    return {"id": "c1", "type": "function", "function": function, **others}


def after(message):
    """A conversation that goes on after a message of the assistant."""
    result = {"role": "tool", "tool_call_id": "c1", "content": "1"}
    return [*HELLO, message, result if message.get("tool_calls") else HELLO[0]]


def calling(*calls, **others):
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **others}


SAID = {
    "cut off": calling(call('{"a')),
    "an array": calling(call("[1]")),
    "null": calling(call("null")),
    "nothing": calling(call("")),
    "an object": calling(call({"a": 1})),
    "nested too deep": calling(call('{"a":' * 500 + "1" + "}" * 500)),
    "half of a surrogate pair": calling(call('{"a": "\\ud800"}')),
    "a huge number": calling(call('{"a": ' + "9" * 5000 + "}")),
    "no number": calling(call('{"a": NaN}')),
    "an index": calling(call(index=0)),
    "parsed arguments": calling(call(function={"parsed_arguments": {}})),
    "a custom call": calling({"id": "c1", "type": "custom", "custom": {"name": "f", "input": "x"}}),
    "an older call": {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
    "parsed content": {"role": "assistant", "content": "{}", "parsed": {}},
    "a refusal": {"role": "assistant", "content": None, "refusal": "I can't."},
    "a refusing part": {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    "bare strings": {"role": "user", "content": ["a", {"type": "text", "text": "b"}]},
    "an id": {"role": "user", "content": "Hi", "id": "m1"},
    "details": {"role": "assistant", "content": "x", "reasoning_details": [{"text": "t"}]},
    "annotations": {"role": "assistant", "content": "x", "annotations": [{"type": "u"}]},
    "cache control": {
        "role": "user",
        "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}],
    },
    "audio of the past": {"role": "assistant", "content": None, "audio": {"id": "a1"}},
    "nothing at all": {"role": "assistant", "content": None},
}


@pytest.mark.parametrize("message", SAID.values(), ids=SAID)
@pytest.mark.parametrize("name", ["server", "tool_server"])
def test_what_was_said_may_be_said_again(request, name, message):
    """The built-in model's template concatenates the content, and knows no calls."""
    response = request.getfixturevalue(name).post(CHAT, messages=after(message), max_tokens=2)
    assert response.status_code == 200, response.text


def test_what_is_dropped_from_history_is_named():
    tool = {"type": "function", "function": {"name": "f", "x": 1}, "cache_control": {}}
    body = {"messages": after(calling(call(index=0))) * 2, "tools": [tool]}
    assert set(dropped_keys(ChatCompletionRequest.model_validate(body))) == {
        "messages.tool_calls.index",
        "tools.cache_control",
        "tools.function.x",
    }


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_content_that_is_no_text_is_refused_by_its_kind(server, kind):
    content = [{"type": "text", "text": "a"}, {"type": kind, kind: {}}]
    response = server.post(CHAT, messages=[{"role": "user", "content": content}])
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages.0.content.1.type"
    assert f"not '{kind}'" in response.json()["error"]["message"]


def test_a_tool_without_parameters_is_a_tool(tool_server):
    tools = [{"type": "function", "function": {"name": "f"}}]
    response = tool_server.post(CHAT, messages=HELLO, tools=tools, max_tokens=4)
    assert response.status_code == 200
