"""An answer can be sent back, wherever it was cut off and however the client appends it.

The answers come from a model with random weights, and so hold whatever a model can write.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import httpx2
import openai
import pytest
from checkpoints import BYTES
from pydantic import BaseModel

from minimal_vllm.server.chat.request import ChatCompletionRequest
from minimal_vllm.text.chat_template import ChatTemplate
from tests.server.harness import PATIENCE, TOOL_MODEL
from tests.server.replay import Replay
from tests.text.model_templates import TEMPLATES

MESSAGES = [{"role": "user", "content": "Add them."}]
SPACES = {str(BYTES.index(space)): -100 for space in "ĠĉĊč"}
MAX_TOKENS = (*range(1, 21), 60)


class Add(BaseModel):
    left: int
    right: bool


TOOL = openai.pydantic_function_tool(Add)
NAMED = {"type": "function", "function": {"name": "Add"}}
THINKING = ("<think>", "the", "</think>", "<|endoftext|>")

PLAIN = {"chat_template_kwargs": {"enable_thinking": False}}
MODES = {
    "a text": {"extra_body": PLAIN},
    "reasoning": {},
    "a named call": {"tools": [TOOL], "tool_choice": NAMED, "extra_body": PLAIN},
    "a required call": {"tools": [TOOL], "tool_choice": "required", "extra_body": PLAIN},
    "a required call after reasoning": {"tools": [TOOL], "tool_choice": "required"},
    "a call by itself": {"tools": [TOOL], "extra_body": {**PLAIN, "min_tokens": 1}},
    "a schema": {"response_format": Add, "extra_body": PLAIN},
    "a schema after reasoning": {"response_format": Add},
}


@pytest.fixture(scope="module")
def biases(tool_server):
    """What makes a random model write what each mode is about."""

    def token(text):
        (token_id,) = tool_server.post("/tokenize", prompt=text).json()["tokens"]
        return str(token_id)

    reasoning = {token(word): 100 for word in THINKING}
    calls = {token("<tool_call>"): 50, token("<|endoftext|>"): 100}
    return {
        mode: SPACES
        | (reasoning if "reasoning" in mode else {})
        | (calls if mode == "a call by itself" else {})
        for mode in MODES
    }


# ---- how clients append an answer ---------------------------------------------------------------


def as_object(client, arguments):
    return client.chat.completions.create(**arguments).choices[0].message


def as_dump(client, arguments):
    return as_object(client, arguments).model_dump()


def as_dump_without_nulls(client, arguments):
    return as_object(client, arguments).model_dump(exclude_none=True)


def by_parsing(client, arguments):
    try:
        answer = client.chat.completions.parse(**arguments)
    except openai.LengthFinishReasonError as error:
        answer = error.completion
    return answer.choices[0].message


def by_streaming(client, arguments):
    try:
        with client.chat.completions.stream(**arguments) as stream:
            answer = stream.get_final_completion()
    except openai.LengthFinishReasonError as error:
        answer = error.completion
    return answer.choices[0].message.model_dump()


def by_adding_deltas(client, arguments):
    """As many agents do it: texts are concatenated, and calls are kept with all their fields."""
    message = {"role": "assistant", "content": None}
    for chunk in client.chat.completions.create(**arguments, stream=True):
        delta = chunk.choices[0].delta.model_dump(exclude_none=True)
        for name, value in delta.items():
            if name == "tool_calls":
                add_calls(message.setdefault("tool_calls", []), value)
            elif name != "role":
                message[name] = (message.get(name) or "") + value
    return message


def add_calls(calls, new):
    for call in new:
        if call["index"] == len(calls):
            calls.append(call)
        else:
            calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]


WAYS = [
    as_object,
    as_dump,
    as_dump_without_nulls,
    by_parsing,
    by_streaming,
    by_adding_deltas,
]


@pytest.fixture(scope="module")
def client(tool_server):
    with httpx2.Client(transport=Replay(), timeout=PATIENCE) as connection:
        yield tool_server.client(http_client=connection)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", MODES)
def test_an_answer_of_any_length_can_be_sent_back(client, biases, mode, way):
    options = dict(MODES[mode])
    if way not in (by_parsing, by_streaming) and options.get("response_format") is Add:
        schema = {"name": "Add", "schema": Add.model_json_schema()}
        options["response_format"] = {"type": "json_schema", "json_schema": schema}

    def converse(max_tokens):
        arguments = {
            "model": TOOL_MODEL,
            "messages": MESSAGES,
            "max_tokens": max_tokens,
            "seed": max_tokens,
            "temperature": 10,
            "logit_bias": biases[mode],
            **options,
        }
        answer = way(client, arguments)
        calls = answer.get("tool_calls") if isinstance(answer, dict) else answer.tool_calls
        messages = [*MESSAGES, answer, *map(result_of, calls or ()), *MESSAGES]
        client.chat.completions.create(model=TOOL_MODEL, messages=messages, max_tokens=1)
        plain = json.dumps(
            [each if isinstance(each, dict) else each.model_dump() for each in messages]
        )
        for template in TEMPLATES:
            assert "None" not in render(template, plain)

    with ThreadPoolExecutor(len(MAX_TOKENS)) as threads:  # the server batches them
        list(threads.map(converse, MAX_TOKENS))


def result_of(call):
    call_id = call["id"] if isinstance(call, dict) else call.id
    return {"role": "tool", "tool_call_id": call_id, "content": "7"}


@cache
def render(template, messages):
    """The text that a template makes of messages, which are JSON."""
    body = ChatCompletionRequest.model_validate({"messages": json.loads(messages)})
    return compiled(template).render([message.as_dict() for message in body.messages])


@cache
def compiled(template):
    return ChatTemplate(TEMPLATES[template])
