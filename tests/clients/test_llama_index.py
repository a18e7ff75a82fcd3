"""LlamaIndex, through its model for servers like OpenAI's."""

import asyncio
from typing import Literal

import openai
import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

MODEL = "minimal-vllm-demo"
QUESTION = "Good evening. Have you come far?"


class Weather(BaseModel):
    sky: Literal["clear", "cloudy"]
    wind: Literal["calm", "storm"]


def model(url, name=MODEL, **options):
    options = {"is_chat_model": True, "temperature": 0, "max_retries": 0, **options}
    return OpenAILike(model=name, api_base=url, api_key="none", context_window=2048, **options)


@pytest.fixture(scope="module")
def client(demo):
    return openai.OpenAI(base_url=demo, api_key="none")


@pytest.mark.client("LlamaIndex", "plain", "streamed")
def test_a_chat_is_answered_whole_and_streamed(demo, client):
    messages = [{"role": "user", "content": QUESTION}]
    known = client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=12, temperature=0
    )
    llm, question = model(demo, max_tokens=12), [ChatMessage(role="user", content=QUESTION)]
    assert llm.chat(question).message.content == known.choices[0].message.content
    deltas = [each.delta for each in llm.stream_chat(question)]
    assert "".join(deltas) == known.choices[0].message.content
    assert len(deltas) > 1


@pytest.mark.client("LlamaIndex", "plain", "streamed")
def test_a_text_is_completed_whole_and_streamed(demo, client):
    known = client.completions.create(model=MODEL, prompt=QUESTION, max_tokens=12, temperature=0)
    llm = model(demo, is_chat_model=False, max_tokens=12)
    assert llm.complete(QUESTION).text == known.choices[0].text
    assert "".join(each.delta for each in llm.stream_complete(QUESTION)) == known.choices[0].text


@pytest.mark.client("LlamaIndex", "tools")
def test_an_agent_streams_calls_its_tool_and_answers(script):
    calls = []

    def turn(to: Literal["left", "right"]) -> str:
        """Turns the wheel."""
        calls.append(to)
        return "done"

    async def run():
        llm = model(script, "script", is_function_calling_model=True)
        return await FunctionAgent(tools=[turn], llm=llm).run("Where to?")

    assert str(asyncio.run(run())) == "I went left."
    assert calls == ["left"]


@pytest.mark.client("LlamaIndex", "tools")
def test_a_call_of_a_tool_is_predicted(script):
    def turn(to: Literal["left", "right"]) -> str:
        """Turns the wheel."""
        return f"turned {to}"

    llm = model(script, "script", is_function_calling_model=True)
    answer = llm.predict_and_call([FunctionTool.from_defaults(turn)], "Where to?")
    assert answer.response == "turned left"


@pytest.mark.client("LlamaIndex", "structured output")
def test_structured_output_is_an_object_of_the_schema(demo):
    llm = model(demo, should_use_structured_outputs=True)
    prompt = PromptTemplate("What weather?")
    assert isinstance(llm.structured_predict(Weather, prompt), Weather)
    last = list(llm.stream_structured_predict(Weather, prompt))[-1]
    assert last.sky in {"clear", "cloudy"}


@pytest.mark.client("LlamaIndex", "context overflow")
def test_a_prompt_that_is_too_long_raises_openais_error(demo):
    with pytest.raises(openai.BadRequestError, match="maximum context length is 2048") as refusal:
        model(demo).chat([ChatMessage(role="user", content="a " * 3000)])
    assert refusal.value.code == "context_length_exceeded"
