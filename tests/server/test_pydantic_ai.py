"""Pydantic AI's agents, through its models of both of OpenAI's APIs."""

from typing import Literal

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ThinkingPart, ToolOutput
from pydantic_ai.exceptions import ModelContextWindowExceededError
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.server.harness import MODEL

QUESTION = "Good evening. Have you come far?"
SETTINGS = {"max_tokens": 12, "temperature": 0}


class Weather(BaseModel):
    sky: Literal["clear", "cloudy"]
    wind: Literal["calm", "storm"]


@pytest.fixture(params=[OpenAIChatModel, OpenAIResponsesModel])
def model_of(request):
    """Makes Pydantic AI's model of a server."""

    def model_of(server, name=MODEL):
        return request.param(name, provider=OpenAIProvider(openai_client=server.async_client()))

    return model_of


@pytest.fixture
def known(client):
    """The answer that OpenAI's own client gets."""
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], **SETTINGS
    )
    return answer.choices[0].message.content


@pytest.mark.client("Pydantic AI", "plain")
def test_an_agent_answers(server, model_of, known):
    result = Agent(model_of(server)).run_sync(QUESTION, model_settings=SETTINGS)
    assert result.output == known
    assert result.usage.output_tokens == 12


@pytest.mark.client("Pydantic AI", "streamed")
def test_an_agent_streams(server, model_of, known):
    stream = Agent(model_of(server)).run_stream_sync(QUESTION, model_settings=SETTINGS)
    deltas = list(stream.stream_text(delta=True, debounce_by=None))
    assert "".join(deltas) == known
    assert len(deltas) > 1
    assert stream.usage.output_tokens == 12


def steered(model):
    """An agent with the tool ``turn``, and the list of its calls."""
    agent, calls = Agent(model), []

    @agent.tool_plain
    def turn(to: Literal["left", "right"]) -> str:
        """Turns the wheel."""
        calls.append(to)
        return "done"

    return agent, calls


def thoughts_of(result):
    """The reasoning: of ``/v1/responses``, Pydantic AI keeps it as what the provider sent."""
    parts = [part for message in result.all_messages() for part in message.parts]
    thoughts = [part for part in parts if isinstance(part, ThinkingPart)]
    return [each.content or "".join(each.provider_details["raw_content"]) for each in thoughts]


@pytest.mark.client("Pydantic AI", "tools")
def test_an_agent_reasons_calls_its_tool_and_answers(script, model_of):
    agent, calls = steered(model_of(script, "script"))
    result = agent.run_sync("Where to?")
    assert (result.output, calls) == ("I went left.", ["left"])
    assert thoughts_of(result) == ["Left is best."]
    again = agent.run_sync("And now?", message_history=result.all_messages())
    assert (again.output, calls) == ("I went left.", ["left", "left"])


@pytest.mark.client("Pydantic AI", "tools")
def test_a_streamed_agent_reasons_calls_its_tool_and_answers(script, model_of):
    agent, calls = steered(model_of(script, "script"))
    stream = agent.run_stream_sync("Where to?")
    assert "".join(stream.stream_text(delta=True, debounce_by=None)) == "I went left."
    assert calls == ["left"]


@pytest.mark.client("Pydantic AI", "structured output")
@pytest.mark.parametrize("form", [NativeOutput, ToolOutput])
def test_an_agent_gives_an_object_of_the_schema(server, model_of, form):
    one = {"parallel_tool_calls": False}  # the built-in model knows no tools, and would call on
    agent = Agent(model_of(server), output_type=form(Weather), model_settings=one)
    assert isinstance(agent.run_sync("What weather?").output, Weather)
    stream = agent.run_stream_sync("What weather?")
    assert isinstance(list(stream.stream_output(debounce_by=None))[-1], Weather)


@pytest.mark.client("Pydantic AI", "context overflow")
def test_a_prompt_that_is_too_long_raises_its_error(server, model_of):
    agent = Agent(model_of(server))
    with pytest.raises(ModelContextWindowExceededError, match="maximum context length is 2048"):
        agent.run_sync("a " * 3000)
