"""As in test_conversations.py, for the APIs of agents: an answer of any length can be sent back."""

from concurrent.futures import ThreadPoolExecutor

import anthropic
import httpx2
import pytest

from tests.server.harness import MODEL, PATIENCE
from tests.server.replay import Replay

HELLO = {"role": "user", "content": "Add them."}
MAX_TOKENS = range(1, 17)
SCHEMA = {
    "type": "object",
    "properties": {"left": {"type": "integer"}, "right": {"type": "boolean"}},
    "required": ["left", "right"],
    "additionalProperties": False,
}
BY_SCRIPT = "reasoning and a call by itself"


@pytest.fixture
def model(request, mode):
    """A server, and the name of its model: of one that writes by a script, or the built-in one."""
    by_script = mode == BY_SCRIPT
    return request.getfixturevalue("script" if by_script else "server"), (
        "script" if by_script else MODEL
    )


@pytest.fixture(scope="module")
def connection():
    with httpx2.Client(transport=Replay(), timeout=PATIENCE) as connection:
        yield connection


def for_all_lengths(converse):
    with ThreadPoolExecutor(len(MAX_TOKENS)) as threads:  # the server batches them
        list(threads.map(converse, MAX_TOKENS))


def forms_of(items):
    """Items of an answer, in each form in which they can be sent back."""
    yield items
    yield [item.model_dump(mode="json") for item in items]
    yield [item.model_dump(mode="json", exclude_none=True) for item in items]


# ---- /v1/responses ------------------------------------------------------------------------------

FUNCTION = {"type": "function", "name": "turn", "parameters": SCHEMA}
RESPONSES_MODES = {
    "a text": {},
    BY_SCRIPT: {"tools": [FUNCTION]},
    "a required call": {"tools": [FUNCTION], "tool_choice": "required"},
    "a named call": {"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "turn"}},
    "a schema": {"text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}},
}


def whole_response(client, body):
    return client.responses.create(**body).output


def items_of_events(client, body):
    events = client.responses.create(**body, stream=True)
    return [event.item for event in events if event.type == "response.output_item.done"]


def items_of_the_helper(client, body):
    with client.responses.stream(**body) as stream:
        *_, last = stream  # get_final_response knows no answer that is cut off
        return last.response.output


@pytest.mark.parametrize("way", [whole_response, items_of_events, items_of_the_helper])
@pytest.mark.parametrize("mode", RESPONSES_MODES)
def test_a_response_of_any_length_can_be_sent_back(model, connection, mode, way):
    server, name = model
    client = server.client(http_client=connection)

    def converse(max_tokens):
        body = {
            "model": name,
            "max_output_tokens": max_tokens,
            "include": ["reasoning.encrypted_content"],
            "extra_body": {"seed": max_tokens},
            **RESPONSES_MODES[mode],
        }
        items = way(client, {**body, "input": [HELLO]})
        results = [
            {"type": "function_call_output", "call_id": item.call_id, "output": "7"}
            for item in items
            if item.type == "function_call"
        ]
        for form in forms_of(items):
            conversation = [HELLO, *form, *results, HELLO]
            client.responses.create(model=name, input=conversation, max_output_tokens=1)

    for_all_lengths(converse)


# ---- /v1/messages -------------------------------------------------------------------------------

TOOL = {"name": "turn", "input_schema": SCHEMA}
MESSAGES_MODES = {
    "a text": {},
    BY_SCRIPT: {"tools": [TOOL]},
    "a required call": {"tools": [TOOL], "tool_choice": {"type": "any"}},
    "a named call": {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "turn"}},
    "a schema": {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
}


def whole_message(claude, body):
    return claude.messages.create(**body).content


def message_of_the_helper(claude, body):
    with claude.messages.stream(**body) as stream:
        return stream.get_final_message().content


@pytest.mark.parametrize("way", [whole_message, message_of_the_helper])
@pytest.mark.parametrize("mode", MESSAGES_MODES)
def test_a_message_of_any_length_can_be_sent_back(model, connection, mode, way):
    server, name = model
    options = {"api_key": "none", "max_retries": 0, "http_client": connection}
    claude = anthropic.Anthropic(base_url=server.url, **options)

    def converse(max_tokens):
        body = {"model": name, "max_tokens": max_tokens, **MESSAGES_MODES[mode]}
        blocks = way(claude, {**body, "messages": [HELLO]})
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": "7"}
            for block in blocks
            if block.type == "tool_use"
        ]
        question = {"role": "user", "content": [*results, {"type": "text", "text": "Go on."}]}
        for form in forms_of(blocks):
            answer = [{"role": "assistant", "content": form}] if form else []
            conversation = [HELLO, *answer, question]
            claude.messages.create(model=name, messages=conversation, max_tokens=1)

    for_all_lengths(converse)
