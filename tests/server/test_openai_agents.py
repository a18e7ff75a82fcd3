"""openai-agents, with its default model class, which uses ``/v1/responses``, and with the older."""

import asyncio
from typing import Literal

import agents
import openai
import pytest
from pydantic import BaseModel

from tests.server.harness import MODEL

QUESTION = "Good evening. Have you come far?"
STOP = {"stop": ["."]}  # an answer of /v1/responses that is cut off by a limit would be an error
SETTINGS = agents.ModelSettings(temperature=0, extra_body=STOP)


class Weather(BaseModel):
    sky: Literal["clear", "cloudy"]
    wind: Literal["calm", "storm"]


@pytest.fixture(params=[None, False], ids=["default", "chat"])
def config_of(request):
    """Makes the configuration of a run on a server."""

    def config_of(server):
        client = server.async_client()
        provider = agents.OpenAIProvider(openai_client=client, use_responses=request.param)
        return agents.RunConfig(model_provider=provider, tracing_disabled=True)

    return config_of


@pytest.fixture
def known(client):
    """The answer that OpenAI's own client gets."""
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        **STOP,
    )
    return answer.choices[0].message.content


def agent(name=MODEL, **options):
    return agents.Agent("pilot", model=name, **options)


def steered():
    """An agent with the tool ``turn``, and the list of its calls."""
    calls = []

    @agents.function_tool
    def turn(to: Literal["left", "right"]) -> str:
        """Turns the wheel."""
        calls.append(to)
        return "done"

    return agent("script", tools=[turn]), calls


def stream(pilot, config, question=QUESTION):
    """The text of a streamed run, piece by piece, and the finished run."""

    async def collect():
        run = agents.Runner.run_streamed(pilot, question, run_config=config)
        pieces = [
            event.data.delta
            async for event in run.stream_events()
            if event.type == "raw_response_event"
            and event.data.type == "response.output_text.delta"
        ]
        return pieces, run

    return asyncio.run(collect())


@pytest.mark.client("openai-agents", "plain")
def test_an_agent_answers(server, config_of, known):
    pilot = agent(model_settings=SETTINGS)
    result = agents.Runner.run_sync(pilot, QUESTION, run_config=config_of(server))
    assert result.final_output == known
    assert result.context_wrapper.usage.output_tokens > 1


@pytest.mark.client("openai-agents", "streamed")
def test_an_agent_streams(server, config_of, known):
    pieces, run = stream(agent(model_settings=SETTINGS), config_of(server))
    assert "".join(pieces) == run.final_output == known
    assert len(pieces) > 1


@pytest.mark.client("openai-agents", "tools")
def test_an_agent_calls_its_tool_and_answers(script, config_of):
    pilot, calls = steered()
    result = agents.Runner.run_sync(pilot, "Where to?", run_config=config_of(script))
    assert (result.final_output, calls) == ("I went left.", ["left"])
    again = [*result.to_input_list(), {"role": "user", "content": "And now?"}]
    result = agents.Runner.run_sync(pilot, again, run_config=config_of(script))
    assert (result.final_output, calls) == ("I went left.", ["left", "left"])


@pytest.mark.client("openai-agents", "tools")
def test_a_streamed_agent_calls_its_tool_and_answers(script, config_of):
    pilot, calls = steered()
    pieces, run = stream(pilot, config_of(script), "Where to?")
    assert ("".join(pieces), run.final_output, calls) == ("I went left.", "I went left.", ["left"])


@pytest.mark.client("openai-agents", "structured output")
def test_an_agent_gives_an_object_of_the_schema(server, config_of):
    pilot = agent(output_type=Weather)
    result = agents.Runner.run_sync(pilot, "What weather?", run_config=config_of(server))
    assert isinstance(result.final_output, Weather)
    _, run = stream(pilot, config_of(server), "What weather?")
    assert isinstance(run.final_output, Weather)


@pytest.mark.client("openai-agents", "context overflow")
def test_a_prompt_that_is_too_long_raises_openais_error(server, config_of):
    with pytest.raises(openai.BadRequestError, match="maximum context length is 2048") as refusal:
        agents.Runner.run_sync(agent(), "a " * 3000, run_config=config_of(server))
    assert refusal.value.code == "context_length_exceeded"
