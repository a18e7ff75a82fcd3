"""``/v1/messages`` as Anthropic's client, which Claude Code is built on, knows it."""

import anthropic
import pytest
from anthropic.types import RawMessageStreamEvent
from pydantic import TypeAdapter

from tests.server.harness import MODEL, PATIENCE, process

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
HELLO = {"role": "user", "content": "Good evening."}
TURN = {
    "name": "turn",
    "description": "Turns the wheel.",
    "input_schema": {
        "type": "object",
        "properties": {"to": {"enum": ["left", "right"]}},
        "required": ["to"],
        "additionalProperties": False,
    },
}


def anthropic_client(server, **options):
    options = {"api_key": "none", "max_retries": 0, "timeout": PATIENCE, **options}
    return anthropic.Anthropic(base_url=server.url, **options)


@pytest.fixture(scope="module")
def claude(server):
    return anthropic_client(server)


def post(server, **body):
    return server.post(MESSAGES, **{"messages": [HELLO], "max_tokens": 8, **body})


# ---- texts --------------------------------------------------------------------------------------


@pytest.mark.client("anthropic", "plain")
def test_a_text_is_answered_as_the_chat_is(claude, client):
    chat = client.chat.completions.create(model=MODEL, messages=[HELLO], max_tokens=12, seed=1)
    answer = claude.messages.create(
        model=MODEL, messages=[HELLO], max_tokens=12, extra_body={"seed": 1}
    )
    assert [block.text for block in answer.content] == [chat.choices[0].message.content]
    assert (answer.role, answer.stop_reason) == ("assistant", "max_tokens")
    usage = answer.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == chat.usage.prompt_tokens
    assert usage.output_tokens == 12


@pytest.mark.parametrize("system", ["Be brief.", [{"type": "text", "text": "Be brief."}]])
def test_system_and_earlier_turns_become_the_same_prompt_as_a_chats(claude, client, system):
    turns = [HELLO, {"role": "assistant", "content": "Good evening, sir."}, HELLO]
    chat = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "system", "content": "Be brief."}, *turns],
        max_tokens=12,
        temperature=0,
    )
    blocks = [{"type": "text", "text": "Good evening, sir.", "cache_control": None}]
    turns[1] = {"role": "assistant", "content": blocks}
    answer = claude.messages.create(
        model=MODEL,
        system=system,
        messages=turns,
        max_tokens=12,
        extra_body={"temperature": 0, "top_k": 5, "top_p": 0.9},
    )
    assert answer.content[0].text == chat.choices[0].message.content
    count = claude.messages.count_tokens(model=MODEL, system=system, messages=turns)
    assert count.input_tokens == chat.usage.prompt_tokens


def test_messages_of_one_role_in_a_row_are_one_turn(claude, client):
    together = {
        "role": "user",
        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
    }
    apart = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    counts = [
        claude.messages.count_tokens(model=MODEL, messages=messages).input_tokens
        for messages in ([together], apart)
    ]
    assert counts[0] == counts[1]


def test_an_answer_goes_on_from_the_assistants_beginning(claude, client):
    turns = [HELLO, {"role": "assistant", "content": "I have been at"}]
    chat = client.chat.completions.create(
        model=MODEL,
        messages=turns,
        max_tokens=8,
        temperature=0,
        extra_body={"add_generation_prompt": False, "continue_final_message": True},
    )
    answer = claude.messages.create(
        model=MODEL, messages=turns, max_tokens=8, extra_body={"temperature": 0}
    )
    assert answer.content[0].text == chat.choices[0].message.content


def test_the_stop_reason_says_what_ended_the_answer(script, server):
    assert post(script).json()["stop_reason"] == "end_turn"
    stopped = post(script, stop_sequences=["went"]).json()
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "went")
    assert stopped["content"] == [{"type": "text", "text": "I "}]
    assert post(script, tools=[TURN]).json()["stop_reason"] == "tool_use"
    assert post(server).json()["stop_reason"] == "max_tokens"
    full = post(
        server,
        max_tokens=4000,
        ignore_eos=True,
        messages=[{"role": "user", "content": "a " * 1900}],
    )
    assert full.json()["stop_reason"] == "model_context_window_exceeded"


@pytest.mark.client("anthropic", "structured output")
def test_json_of_a_schema(claude):
    schema = {"type": "object", "properties": {"sky": {"enum": ["clear"]}}, "required": ["sky"]}
    schema["additionalProperties"] = False
    answer = claude.messages.create(
        model=MODEL,
        messages=[HELLO],
        max_tokens=100,
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    assert "clear" in answer.content[0].text


# ---- calls and thinking -------------------------------------------------------------------------


@pytest.mark.client("anthropic", "tools")
def test_a_call_its_result_and_the_answer(script):
    client = anthropic_client(script)
    conversation = [{"role": "user", "content": "Which way?"}]
    first = client.messages.create(
        model="script", messages=conversation, tools=[TURN], max_tokens=50
    )
    thinking, call = first.content
    assert thinking.thinking == "Left is best."
    assert (call.type, call.name, call.input) == ("tool_use", "turn", {"to": "left"})
    assert first.usage.output_tokens_details.thinking_tokens == 3
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "ok", "is_error": False}
    conversation += [
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    second = client.messages.create(
        model="script", messages=conversation, tools=[TURN], max_tokens=50
    )
    assert second.content[0].text == "I went left."
    assert second.stop_reason == "end_turn"


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "turn"}])
def test_a_call_that_must_be_made_matches_the_schema(claude, choice):
    answer = claude.messages.create(
        model=MODEL,
        messages=[HELLO],
        max_tokens=200,
        tools=[TURN],
        tool_choice={**choice, "disable_parallel_tool_use": True},
    )
    (call,) = answer.content
    assert call.input["to"] in ("left", "right")
    assert answer.stop_reason == "tool_use"


def test_tools_are_told_to_the_model_but_not_called_with_none(script):
    answer = post(script, tools=[TURN], tool_choice={"type": "none"}, max_tokens=20).json()
    assert "tool_use" not in [block["type"] for block in answer["content"]]


def test_thinking_reaches_the_chat_template(tool_server):
    counts = {
        kind: tool_server.post(COUNT, messages=[HELLO], thinking={"type": kind}).json()
        for kind in ("enabled", "disabled", "adaptive")
    }
    assert counts["disabled"]["input_tokens"] > counts["enabled"]["input_tokens"]
    assert counts["adaptive"] == counts["enabled"]


# ---- streams ------------------------------------------------------------------------------------


def block_events(kind):
    end = [("content_block_delta", "signature_delta")] if kind == "thinking" else []
    delta = {"thinking": "thinking_delta", "text": "text_delta", "tool_use": "input_json_delta"}
    return [
        ("content_block_start", kind),
        ("content_block_delta", delta[kind]),
        *end,
        ("content_block_stop", None),
    ]


@pytest.mark.parametrize(
    ("body", "blocks"),
    [
        ({"tools": [TURN]}, ["thinking", "tool_use"]),
        ({}, ["text"]),
        ({"tools": [TURN], "max_tokens": 2}, ["thinking"]),
    ],
)
def test_a_stream_has_the_apis_events_in_their_order(script, body, blocks):
    body = {"messages": [HELLO], "max_tokens": 50, **body}
    events = list(anthropic_client(script).messages.create(model="script", stream=True, **body))
    kinds = []
    for event in events:
        TypeAdapter(RawMessageStreamEvent).validate_python(event.model_dump())
        part = getattr(event, "delta", None) or getattr(event, "content_block", None)
        kind = (event.type, getattr(part, "type", None))
        kinds += [kind] if kinds[-1:] != [kind] else []
    between = [event for block in blocks for event in block_events(block)]
    end = [("message_delta", None), ("message_stop", None)]
    assert kinds == [("message_start", None), *between, *end]


@pytest.mark.client("anthropic", "streamed")
@pytest.mark.parametrize("body", [{"tools": [TURN]}, {}, {"stop_sequences": ["left"]}])
def test_the_clients_own_stream_adds_up_to_the_answer(script, body):
    body = {"messages": [HELLO], "max_tokens": 50, **body}
    client = anthropic_client(script)
    with client.messages.stream(model="script", **body) as events:
        streamed = events.get_final_message()
    whole = client.messages.create(model="script", **body)

    def without_ids(message):
        fields = message.model_dump(exclude={"id", "usage", "parsed_output"})
        return fields | {"content": [{**block, "id": None} for block in fields["content"]]}

    expected, given = without_ids(whole), without_ids(streamed)
    for block in given["content"]:
        block.pop("parsed_output", None)
    assert given == expected
    assert streamed.usage.output_tokens == whole.usage.output_tokens


# ---- errors and keys ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "'image'"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "'document'"),
        ({"messages": [{"role": "assistant", "content": [{"type": "server_tool_use"}]}]}, "server"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "tool_result",
                                "tool_use_id": "t",
                                "content": [{"type": "image"}],
                            }
                        ],
                    }
                ]
            },
            "'image'",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "bash_20250124"),
        ({"mcp_servers": [{"name": "m"}]}, "runs no tools"),
        ({"tool_choice": {"type": "tool"}}, "needs it"),
        ({"tool_choice": {"type": "any"}}, "no tools"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"stop": "x"}, "stop: not supported"),
        ({"stop_sequences": ["x"] * 65}, "stop_sequences"),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, "prompt is too long"),
    ],
)
def test_what_is_wrong_is_refused_by_name_in_anthropics_form(server, body, words):
    response = post(server, **body)
    assert response.status_code == 400
    assert response.json()["type"] == "error"
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]


def test_errors_are_the_clients_own_exceptions(claude):
    with pytest.raises(anthropic.NotFoundError, match="no model 'other'"):
        claude.messages.create(model="other", messages=[HELLO], max_tokens=1)
    with pytest.raises(anthropic.BadRequestError, match="there is no tool 'f'"):
        claude.messages.create(
            model=MODEL,
            messages=[HELLO],
            max_tokens=1,
            tools=[TURN],
            tool_choice={"type": "tool", "name": "f"},
        )


@pytest.mark.client("anthropic", "context overflow")
def test_a_prompt_that_is_too_long_raises_the_error_that_clients_look_for(claude):
    long = [{"role": "user", "content": "a " * 3000}]
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: .* 2048 tokens"):
        claude.messages.create(model=MODEL, messages=long, max_tokens=1)


@pytest.mark.parametrize("path", [MESSAGES, COUNT, "/v1/messages/batches"])
def test_other_errors_have_anthropics_form_too(server, path):
    response = server.request("DELETE", path)
    assert response.status_code in (404, 405)
    assert response.json()["type"] == "error"


def test_either_header_has_the_key():
    with process("--api-key=secret") as server:
        for options in ({"api_key": "secret"}, {"api_key": None, "auth_token": "secret"}):
            client = anthropic_client(server, **options)
            assert client.messages.create(model=MODEL, messages=[HELLO], max_tokens=1).content
        with pytest.raises(anthropic.AuthenticationError, match="x-api-key"):
            anthropic_client(server, api_key="wrong").messages.create(
                model=MODEL, messages=[HELLO], max_tokens=1
            )


BOOKKEEPING = {
    "metadata": {"user_id": "u"},
    "service_tier": "auto",
    "cache_control": {"type": "ephemeral"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "output_config": {"effort": "low"},
    "stop_sequences": [],
    "tools": [],
    "container": None,
}


def test_bookkeeping_changes_nothing(server):
    answer = post(server, temperature=0, **BOOKKEEPING)
    assert answer.json()["content"] == post(server, temperature=0).json()["content"]
