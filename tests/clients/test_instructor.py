"""instructor, which wraps OpenAI's client to give objects."""

from collections.abc import Iterable
from typing import Literal

import instructor
import openai
import pytest
from instructor.core import InstructorRetryException
from pydantic import BaseModel

MODEL = "minimal-vllm-demo"
WEATHER = [{"role": "user", "content": "What weather?"}]
MODES = [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA]


class Weather(BaseModel):
    sky: Literal["clear", "cloudy"]
    wind: Literal["calm", "storm"]


class turn(BaseModel):  # noqa: N801 - the tool's name
    """Turns the wheel."""

    to: Literal["left", "right"]


def wrapped(url, mode=instructor.Mode.JSON_SCHEMA):
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    return instructor.from_openai(client, mode=mode)


@pytest.mark.client("instructor", "plain")
def test_a_plain_chat_passes_through(demo):
    body = {"model": MODEL, "messages": WEATHER, "max_tokens": 12, "temperature": 0}
    known = openai.OpenAI(base_url=demo, api_key="none").chat.completions.create(**body)
    answer = wrapped(demo).chat.completions.create(response_model=None, **body)
    assert answer.choices[0].message.content == known.choices[0].message.content


@pytest.mark.client("instructor", "streamed")
def test_a_plain_stream_passes_through(demo):
    body = {"model": MODEL, "messages": WEATHER, "max_tokens": 12, "temperature": 0}
    chat = wrapped(demo).chat.completions
    whole = chat.create(response_model=None, **body).choices[0].message.content
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in chat.create(response_model=None, stream=True, **body)
    ]
    assert "".join(pieces) == whole


@pytest.mark.client("instructor", "structured output")
@pytest.mark.parametrize("mode", MODES)
def test_an_answer_is_an_object_of_the_schema(demo, mode):
    answer, raw = wrapped(demo, mode).chat.completions.create_with_completion(
        model=MODEL, messages=WEATHER, response_model=Weather, max_retries=0
    )
    assert isinstance(answer, Weather)
    assert raw.usage.completion_tokens


@pytest.mark.client("instructor", "structured output")
@pytest.mark.parametrize("mode", MODES)
def test_a_streamed_answer_becomes_an_object_of_the_schema(demo, mode):
    partial = wrapped(demo, mode).chat.completions.create_partial(
        model=MODEL, messages=WEATHER, response_model=Weather, max_retries=0
    )
    last = list(partial)[-1]
    assert last.sky in {"clear", "cloudy"}
    assert last.wind in {"calm", "storm"}


@pytest.mark.client("instructor", "tools")
def test_the_models_own_call_of_a_tool_is_an_object_of_it(script):
    client = wrapped(script, instructor.Mode.PARALLEL_TOOLS)
    calls = client.chat.completions.create(
        model="script",
        messages=[{"role": "user", "content": "Where to?"}],
        response_model=Iterable[turn],
        tool_choice="auto",
        max_retries=0,
    )
    assert [call.to for call in calls] == ["left"]


@pytest.mark.client("instructor", "context overflow")
@pytest.mark.parametrize("mode", MODES)
def test_a_prompt_that_is_too_long_raises_its_error(demo, mode):
    long = [{"role": "user", "content": "a " * 3000}]
    with pytest.raises(InstructorRetryException, match="maximum context length is 2048"):
        wrapped(demo, mode).chat.completions.create(
            model=MODEL, messages=long, response_model=Weather, max_retries=0
        )
