"""Clients that know nothing of this server, as they come: LangChain's and litellm."""

import json
from typing import Literal

import pytest
from pydantic import BaseModel

from tests.server.harness import MODEL

QUESTION = "Good evening. Have you come far?"


TURN_PARAMETERS = {
    "type": "object",
    "properties": {"to": {"enum": ["left", "right"]}},
    "required": ["to"],
}
TOO_LONG = "a " * 3000


class Weather(BaseModel):
    sky: Literal["clear", "cloudy"]
    wind: Literal["calm", "storm"]


def turn(to: Literal["left", "right"]) -> str:
    """Turns the wheel."""
    return f"turned {to}"


@pytest.fixture
def known(client):
    """What OpenAI's own client gets."""
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], max_tokens=12, seed=1
    )
    return answer.choices[0].message.content


def langchain(server, **options):
    from langchain_openai import ChatOpenAI

    options = {"model": MODEL, "seed": 1, "max_retries": 0, **options}
    return ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", **options)


@pytest.mark.client("LangChain", "plain", "streamed")
def test_langchain_invokes_and_streams(server, known):
    chat = langchain(server, max_tokens=12)
    answer = chat.invoke(QUESTION)
    assert answer.content == known
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.usage_metadata["output_tokens"] == 12
    chunks = list(chat.stream(QUESTION, stream_usage=True))
    assert "".join(chunk.content for chunk in chunks) == known
    assert (
        sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) == 12
    )


@pytest.mark.client("LangChain", "tools")
@pytest.mark.parametrize("is_streamed", [False, True])
def test_langchain_calls_a_tool_and_gets_the_answer(script, is_streamed):
    from langchain_core.tools import tool

    chat = langchain(script, model="script", streaming=is_streamed).bind_tools([tool(turn)])
    turns = [("user", "Where to?"), chat.invoke("Where to?")]
    (call,) = turns[-1].tool_calls
    assert (call["name"], call["args"]) == ("turn", {"to": "left"})
    assert chat.invoke([*turns, tool(turn).invoke(call)]).content == "I went left."


@pytest.mark.client("LangChain", "structured output")
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_gives_an_object_of_the_schema(server, method):
    chat = langchain(server).with_structured_output(Weather, method=method)
    assert isinstance(chat.invoke("What weather?"), Weather)


@pytest.mark.client("LangChain", "context overflow")
def test_langchain_raises_its_error_if_a_prompt_is_too_long(server):
    from langchain_core.exceptions import ContextOverflowError

    with pytest.raises(ContextOverflowError, match="maximum context length is 2048"):
        langchain(server).invoke(TOO_LONG)


@pytest.fixture
def litellm(monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it is fetched from the web
    import litellm

    return litellm


@pytest.mark.client("litellm", "plain", "streamed")
@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_litellm_completes_and_streams(server, known, litellm, provider):
    arguments = {
        "model": f"{provider}/{MODEL}",
        "api_base": f"{server.url}/v1",
        "api_key": "none",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 12,
        "seed": 1,
    }
    answer = litellm.completion(**arguments)
    assert answer.choices[0].message.content == known
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 12
    chunks = list(litellm.completion(**arguments, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == known


@pytest.mark.client("litellm", "tools")
@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_litellm_calls_a_tool_and_gets_the_answer(script, litellm, provider):
    tools = [{"type": "function", "function": {"name": "turn", "parameters": TURN_PARAMETERS}}]
    arguments = {
        "model": f"{provider}/script",
        "api_base": f"{script.url}/v1",
        "api_key": "none",
        "tools": tools,
    }
    turns = [{"role": "user", "content": "Where to?"}]
    message = litellm.completion(messages=turns, **arguments).choices[0].message
    streamed = (
        litellm.stream_chunk_builder(
            list(litellm.completion(messages=turns, stream=True, **arguments))
        )
        .choices[0]
        .message
    )
    for each in (message, streamed):
        (call,) = each.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("turn", {"to": "left"})
        assert each.reasoning_content == "Left is best."
        result = {"role": "tool", "tool_call_id": call.id, "content": "done"}
        answer = litellm.completion(messages=[*turns, each.model_dump(), result], **arguments)
        assert answer.choices[0].message.content == "I went left."


@pytest.mark.client("litellm", "structured output", "context overflow")
@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_litellm_gives_an_object_of_the_schema_and_its_error(server, litellm, provider):
    arguments = {
        "model": f"{provider}/{MODEL}",
        "api_base": f"{server.url}/v1",
        "api_key": "none",
    }
    question = [{"role": "user", "content": QUESTION}]
    answer = litellm.completion(messages=question, response_format=Weather, **arguments)
    Weather.model_validate_json(answer.choices[0].message.content)
    with pytest.raises(litellm.ContextWindowExceededError, match="maximum context length is 2048"):
        litellm.completion(messages=[{"role": "user", "content": TOO_LONG}], **arguments)
