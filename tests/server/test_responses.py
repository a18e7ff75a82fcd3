"""``/v1/responses`` as OpenAI's client, and agents that use nothing else, know it."""

from typing import Literal

import openai
import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from minimal_vllm.server.responses.input_items import ReasoningItem
from tests.server.harness import MODEL

RESPONSES = "/v1/responses"
HELLO = {"role": "user", "content": "Good evening."}
TURN = {
    "type": "function",
    "name": "turn",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"to": {"enum": ["left", "right"]}},
        "required": ["to"],
        "additionalProperties": False,
    },
}


def without_ids(value):
    """A response without what differs from one to the next."""
    if isinstance(value, list):
        return [without_ids(each) for each in value]
    if isinstance(value, dict):
        changing = ("id", "call_id", "item_id", "created_at", "completed_at", "usage")
        return {name: without_ids(each) for name, each in value.items() if name not in changing}
    return value


def stream(server, **body):
    """The events of a stream, each of a type that OpenAI's client knows."""
    client = server.client()
    events = list(client.responses.create(model=None, stream=True, **body))
    for event in events:
        TypeAdapter(ResponseStreamEvent).validate_python(event.model_dump())
    return events


# ---- texts --------------------------------------------------------------------------------------


@pytest.mark.client("openai", "plain")
def test_a_text_is_answered_as_the_chat_is(server, client):
    chat = client.chat.completions.create(model=MODEL, messages=[HELLO], max_tokens=12, seed=1)
    answer = client.responses.create(
        model=MODEL, input=HELLO["content"], max_output_tokens=12, extra_body={"seed": 1}
    )
    assert answer.output_text == chat.choices[0].message.content
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage.input_tokens == chat.usage.prompt_tokens
    assert answer.usage.output_tokens == 12
    assert answer.usage.total_tokens == chat.usage.total_tokens


def test_instructions_and_earlier_turns_become_the_same_prompt_as_a_chats(server, client):
    turns = [
        {"role": "system", "content": "Be brief."},
        HELLO,
        {"role": "assistant", "content": "Good evening, sir."},
        {"role": "user", "content": "Have you come far?"},
    ]
    chat = client.chat.completions.create(model=MODEL, messages=turns, max_tokens=12, temperature=0)
    answer = client.responses.create(
        model=MODEL,
        instructions="Be brief.",
        input=[
            HELLO,
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [
                    {"type": "output_text", "text": "Good evening, sir.", "annotations": []}
                ],
            },
            {"role": "user", "content": [{"type": "input_text", "text": "Have you come far?"}]},
        ],
        max_output_tokens=12,
        temperature=0,
    )
    assert answer.output_text == chat.choices[0].message.content
    assert answer.usage.input_tokens == chat.usage.prompt_tokens


def test_an_answer_that_ends_by_itself_is_completed(script):
    answer = script.client().responses.create(model="script", input="Hello")
    assert answer.status == "completed"
    assert answer.incomplete_details is None
    assert answer.output_text == "I went left."
    assert answer.output[0].status == "completed"


@pytest.mark.client("openai", "structured output")
def test_parse_gives_an_object_of_the_schema(client):
    class Weather(BaseModel):
        sky: Literal["clear", "cloudy"]
        wind: Literal["calm", "storm"]

    answer = client.responses.parse(model=MODEL, input="What weather?", text_format=Weather)
    assert isinstance(answer.output_parsed, Weather)


def test_json_of_any_form(server):
    text = {"format": {"type": "json_object"}}
    answer = server.post(RESPONSES, input="Hello", text=text, max_output_tokens=3).json()
    assert answer["output"][0]["content"][0]["text"].startswith("{")


# ---- calls and reasoning ------------------------------------------------------------------------


@pytest.mark.client("openai", "tools")
def test_a_call_its_output_and_the_answer(script):
    client = script.client()
    conversation = [{"role": "user", "content": "Which way?"}]
    first = client.responses.create(model="script", input=conversation, tools=[TURN])
    reasoning, call = first.output
    assert reasoning.content[0].text == "Left is best."
    assert (call.name, call.arguments) == ("turn", '{"to": "left"}')
    assert first.usage.output_tokens_details.reasoning_tokens == 3
    conversation += [each.model_dump(exclude_none=True) for each in first.output]
    conversation.append({"type": "function_call_output", "call_id": call.call_id, "output": "ok"})
    second = client.responses.create(model="script", input=conversation, tools=[TURN])
    assert second.output_text == "I went left."


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "turn"},
        {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "function", "name": "turn"}],
        },
    ],
)
def test_a_call_that_must_be_made_matches_the_schema(client, choice):
    other = {"type": "function", "name": "stop"}
    answer = client.responses.create(
        model=MODEL,
        input="Which way?",
        tools=[TURN] if choice == "required" else [TURN, other],
        tool_choice=choice,
        parallel_tool_calls=False,
    )
    (call,) = answer.output
    assert (call.type, call.name) == ("function_call", "turn")
    assert '"left"' in call.arguments or '"right"' in call.arguments


def test_a_function_of_a_namespace_is_called_under_its_own_name(client):
    namespace = {"type": "namespace", "name": "ship", "description": "d", "tools": [TURN]}
    answer = client.responses.create(
        model=MODEL,
        input="Which way?",
        tools=[namespace],
        tool_choice="required",
        parallel_tool_calls=False,
    )
    (call,) = answer.output
    assert (call.namespace, call.name) == ("ship", "turn")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "ok"}
    conversation = [HELLO, call.model_dump(exclude_none=True), result]
    client.responses.create(model=MODEL, input=conversation, max_output_tokens=1)


# ---- streams ------------------------------------------------------------------------------------

OF_REASONING = [
    "response.output_item.added",
    "response.content_part.added",
    "response.reasoning_text.delta",
    "response.reasoning_text.done",
    "response.content_part.done",
    "response.output_item.done",
]
OF_CALL = [
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
]
OF_TEXT = [each.replace("reasoning_text", "output_text") for each in OF_REASONING]
BEGIN = ["response.created", "response.in_progress"]


@pytest.mark.parametrize(
    ("body", "kinds"),
    [
        ({"tools": [TURN]}, [*BEGIN, *OF_REASONING, *OF_CALL, "response.completed"]),
        ({}, [*BEGIN, *OF_TEXT, "response.completed"]),
        ({"tools": [TURN], "max_output_tokens": 2}, [*BEGIN, *OF_REASONING, "response.incomplete"]),
    ],
)
def test_a_stream_has_the_apis_events_in_their_order(script, body, kinds):
    events = stream(script, input="Which way?", **body)
    types = [event.type for event in events]
    once = [each for index, each in enumerate(types) if index == 0 or each != types[index - 1]]
    assert once == kinds
    assert [event.sequence_number for event in events] == list(range(len(events)))
    whole = script.post(RESPONSES, input="Which way?", **body).json()
    assert without_ids(events[-1].response.model_dump(mode="json", exclude_unset=True)) == (
        without_ids(whole)
    )
    items = [event.item for event in events if event.type == "response.output_item.done"]
    assert items == events[-1].response.output


@pytest.mark.client("openai", "streamed")
def test_the_clients_own_stream_adds_up_to_the_answer(script):
    with script.client().responses.stream(
        model="script", input="Which way?", tools=[TURN]
    ) as events:
        kinds = {event.type for event in events}
        final = events.get_final_response()
    assert "response.function_call_arguments.delta" in kinds
    assert final.output[1].parsed_arguments == {"to": "left"}


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "keeps no responses"),
        ({"conversation": "conv_1"}, "conversation", "keeps no responses"),
        ({"background": True}, "background", "keeps no responses"),
        ({"truncation": "auto"}, "truncation", "not supported"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "'web_search'"),
        ({"tools": [TURN, {"type": "computer"}]}, "tools.1.type", "'computer'"),
        ({"tools": [TURN, TURN]}, "tools", "same name"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice.type", "'mcp'"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice", "no tools"),
        (
            {"input": [{"type": "item_reference", "id": "x"}]},
            "input.0.type",
            "send the item itself",
        ),
        ({"cache_salt": ""}, "cache_salt", "at least 1 character"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input.0.content.0.type",
            "'input_image'",
        ),
        ({"include": ["message.output_text.logprobs"]}, "include.0", "logprobs"),
        ({"max_output_tokens": 0}, "max_output_tokens", "max_output_tokens"),
        ({"max_tokens": 5}, "max_tokens", "not supported"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format", "schema"),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "no"}}}},
            "text.format.schema",
            "text.format.schema can't be used",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(server, body, param, words):
    response = server.post(RESPONSES, **{"input": "Hello", **body})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert words in error["message"]


@pytest.mark.client("openai", "context overflow")
def test_an_input_that_is_too_long_has_the_code_that_libraries_look_for(client):
    with pytest.raises(openai.BadRequestError, match="maximum context length") as caught:
        client.responses.create(model=MODEL, input="word " * 3000)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "input"


BOOKKEEPING = {
    "store": True,
    "metadata": {"run": "7"},
    "user": "u",
    "safety_identifier": "s",
    "prompt_cache_key": "p",
    "service_tier": "auto",
    "include": ["reasoning.encrypted_content", "web_search_call.action.sources"],
    "max_tool_calls": 3,
    "reasoning": {"effort": "low", "summary": "auto"},
    "text": {"verbosity": "low", "format": {"type": "text"}},
    "truncation": "disabled",
    "background": False,
    "previous_response_id": None,
    "top_logprobs": 0,
    "stream_options": {"include_obfuscation": False},
}


def test_bookkeeping_changes_nothing(server):
    bare = {"input": "Hello", "max_output_tokens": 4, "temperature": 0}
    answer = server.post(RESPONSES, **bare, **BOOKKEEPING).json()
    assert without_ids(answer["output"]) == without_ids(
        server.post(RESPONSES, **bare).json()["output"]
    )
    assert answer["metadata"] == {"run": "7"}


# ---- history -------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_streamed", [False, True])
def test_reasoning_is_sent_back_as_what_clients_do_not_look_into(script, is_streamed):
    body = {"model": "script", "input": [HELLO], "tools": [TURN]}
    include = ["reasoning.encrypted_content"]
    answer = script.client().responses.create(**body, include=include, stream=is_streamed)
    output = [*answer][-1].response.output if is_streamed else answer.output
    (thought,) = (item for item in output if item.type == "reasoning")
    sent_back = {"type": "reasoning", "summary": [], "encrypted_content": thought.encrypted_content}
    assert ReasoningItem.model_validate(sent_back).text == "Left is best."
    assert ReasoningItem.model_validate(sent_back | {"encrypted_content": "gAAAA"}).text == ""
    script.client().responses.create(model="script", input=[HELLO, sent_back, HELLO])
    plain = script.client().responses.create(**body).output[0]
    assert plain.encrypted_content is None
