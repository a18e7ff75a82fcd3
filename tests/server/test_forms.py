"""Forms of the output beside what clients combine them with: stop strings, tools, loose schemas."""

import json
from functools import reduce

import jsonschema
import pytest
from checkpoints import BYTES

from tests.server.harness import TOOL_MODEL

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hi"}]
PLAIN = {"chat_template_kwargs": {"enable_thinking": False}}
CLOSED = {
    "type": "object",
    "properties": {"s": {"enum": ["axb", "xx"]}},
    "required": ["s"],
    "additionalProperties": False,
}
NO_SPACES = {str(BYTES.index(space)): -100 for space in "ĠĉĊč"}
FORMAT = {"type": "json_schema", "json_schema": {"name": "s", "schema": CLOSED}}


def tool(name, parameters, **others):
    return {"type": "function", "function": {"name": name, "parameters": parameters, **others}}


def choice_of(server, **body):
    bias = NO_SPACES | body.pop("logit_bias", {})
    body = {"messages": HELLO, "max_tokens": 200, "seed": 1, "logit_bias": bias, **PLAIN, **body}
    response = server.post(CHAT, **body)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


@pytest.mark.parametrize("stop", ["x", "}", '"', "s"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_does_not_break_a_form_that_is_unfinished(tool_server, stop, stream):
    client = tool_server.client()
    answer = client.chat.completions.create(
        model=TOOL_MODEL,
        messages=HELLO,
        stop=[stop],
        response_format=FORMAT,
        max_tokens=120,
        stream=stream,
        extra_body=PLAIN,
    )
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    else:
        text = answer.choices[0].message.content
    jsonschema.validate(json.loads(text), CLOSED)


def test_a_stop_string_does_not_break_a_call(tool_server):
    choice = choice_of(
        tool_server,
        tools=[tool("f", CLOSED)],
        tool_choice="required",
        stop=["x"],
        parallel_tool_calls=False,
    )
    assert choice["finish_reason"] == "tool_calls"
    jsonschema.validate(
        json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]), CLOSED
    )


def test_a_stop_string_ends_a_form_where_it_may_end(tool_server):
    body = {"prompt": "a", "structured_outputs": {"regex": "(ab)*"}, "stop": "a", "seed": 1}
    choice = tool_server.post(COMPLETIONS, **body).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")
    body |= {"structured_outputs": {"regex": "(ab){2}"}, "stop": "b"}  # it would leave an "a"
    choice = tool_server.post(COMPLETIONS, **body).json()["choices"][0]
    assert (choice["text"], choice["stop_reason"]) == ("abab", None)


LOOSE = [
    {"properties": {"p": {"enum": ["a"], "format": "path"}}, "required": ["p"]},
    {"properties": {"p": {"enum": ["a"], "format": "password"}}, "required": ["p"]},
    {"properties": {"p": {"type": "array", "maxItems": 0, "uniqueItems": True}}, "required": ["p"]},
]


@pytest.mark.parametrize("parameters", LOOSE)
def test_one_tool_that_can_not_be_enforced_spoils_no_other(tool_server, parameters):
    tools = [tool("f", CLOSED), tool("g", parameters)]
    for choice in ("required", {"type": "function", "function": {"name": "g"}}):
        options = {"tool_choice": choice, "parallel_tool_calls": False}
        (call,) = choice_of(tool_server, tools=tools, **options)["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]).keys() <= {"s", "p"}


NO_SCHEMAS = [
    {"properties": {"a": {}}, "minProperties": "x"},
    {"properties": {"a": {"type": "string", "format": ["date"]}}},
    {"not": reduce(lambda schema, _: {"not": schema}, range(850), {})},
]


@pytest.mark.parametrize("parameters", NO_SCHEMAS)
def test_parameters_that_are_no_schema_are_refused(tool_server, parameters):
    for options in ({"tool_choice": "auto"}, {"tool_choice": "required"}):
        tools = [tool("f", parameters, strict=True)]
        response = tool_server.post(CHAT, messages=HELLO, tools=tools, **options)
        assert response.status_code == 400
        assert response.json()["error"]["message"].startswith("tools can't be used: ")


@pytest.mark.parametrize("switch", [{}, {"disable_additional_properties": True}])
def test_objects_are_closed(tool_server, switch):
    schema = {"type": "object", "properties": {"s": {"enum": ["a", "b"]}}, "required": ["s"]}
    choice = choice_of(tool_server, structured_outputs={"json": schema, **switch})
    assert json.loads(choice["message"]["content"]).keys() == {"s"}


@pytest.mark.parametrize("name", ["<tool_call>", "{"])
def test_tools_and_a_schema_together_give_a_call_or_the_schema(tool_server, name):
    tokens = tool_server.post("/tokenize", prompt=f"{name}<|endoftext|>").json()["tokens"]
    choice = choice_of(
        tool_server,
        tools=[tool("f", CLOSED, strict=True)],
        response_format=FORMAT,
        logit_bias=dict(zip(map(str, tokens), (50, 100), strict=True)),
    )
    if name == "{":
        assert choice["finish_reason"] == "stop"
        jsonschema.validate(json.loads(choice["message"]["content"]), CLOSED)
    else:
        assert choice["message"]["content"] is None
        arguments = choice["message"]["tool_calls"][0]["function"]["arguments"]
        jsonschema.validate(json.loads(arguments), CLOSED)


def test_what_clients_can_not_set_is_refused(tool_server):
    wanted = {"regex": "a", "reasoning": "begun"}
    response = tool_server.post(COMPLETIONS, prompt="a", structured_outputs=wanted)
    assert response.json()["error"]["param"] == "structured_outputs.reasoning"
