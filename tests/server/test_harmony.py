"""gpt-oss' format through the three APIs: reasoning, a call, and the answer to its result."""

import pytest

from minimal_vllm.server.chat.history import Message
from minimal_vllm.server.harmony import fit_template
from minimal_vllm.text.chat_template import ChatTemplate
from tests.server.harness import process
from tests.server.scripted import write_scripted_checkpoint

ARGUMENTS = '{"to": "left"}'
MODEL = "harmony"
PARAMETERS = {"type": "object", "properties": {"to": {"enum": ["left", "right"]}}}
TOOL = {"type": "function", "function": {"name": "turn", "parameters": PARAMETERS}}
QUESTION = {"role": "user", "content": "Which way?"}


@pytest.fixture(scope="module")
def harmony(tmp_path_factory):
    folder = tmp_path_factory.mktemp("harmony")
    write_scripted_checkpoint(folder, "Left is best.", ARGUMENTS, "I went left.", harmony=True)
    with process(str(folder), f"--served-model-name={MODEL}") as server:
        yield server


def test_the_template_shows_the_format(harmony):
    assert "Tool calls    openai, as the chat template shows" in harmony.summary
    assert "Reasoning     openai_gptoss, as the chat template shows" in harmony.summary


def test_chat_completions_have_reasoning_calls_and_answers(harmony):
    create = harmony.client().chat.completions.create
    answer = create(model=MODEL, messages=[QUESTION], tools=[TOOL])
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert (choice.message.reasoning, choice.message.content) == ("Left is best.", None)
    (call,) = choice.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("turn", ARGUMENTS)
    assert answer.usage.completion_tokens_details.reasoning_tokens >= 2
    result = {"role": "tool", "tool_call_id": call.id, "content": "done"}
    said = choice.message.model_dump(exclude_none=True)
    (choice,) = create(model=MODEL, messages=[QUESTION, said, result], tools=[TOOL]).choices
    assert (choice.message.content, choice.finish_reason) == ("I went left.", "stop")


def test_a_stream_of_a_chat_adds_up_to_the_same(harmony):
    create = harmony.client().chat.completions.create
    reasoning = arguments = ""
    for chunk in create(model=MODEL, messages=[QUESTION], tools=[TOOL], stream=True):
        (choice,) = chunk.choices
        assert not choice.delta.content
        reasoning += getattr(choice.delta, "reasoning", None) or ""
        for call in choice.delta.tool_calls or ():
            arguments += call.function.arguments or ""
    assert (reasoning, arguments) == ("Left is best.", ARGUMENTS)
    assert choice.finish_reason == "tool_calls"


def test_responses_have_items_for_reasoning_and_calls(harmony):
    tool = {"type": "function", **TOOL["function"]}
    answer = harmony.client().responses.create(model=MODEL, input="Which way?", tools=[tool])
    reasoning, call = answer.output
    assert reasoning.content[0].text == "Left is best."
    assert (call.type, call.name, call.arguments) == ("function_call", "turn", ARGUMENTS)
    plain = harmony.client().responses.create(model=MODEL, input="Which way?")
    assert plain.output_text == "I went left."


def test_messages_have_blocks_for_thinking_and_calls(harmony):
    tool = {"name": "turn", "input_schema": PARAMETERS}
    body = {"model": MODEL, "max_tokens": 64, "messages": [QUESTION], "tools": [tool]}
    answer = harmony.post("/v1/messages", **body).json()
    thinking, call = answer["content"]
    assert thinking["thinking"] == "Left is best."
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "turn", {"to": "left"})
    assert answer["stop_reason"] == "tool_use"


TEMPLATE = """
{%- for tool in tools %}{{- '// ' + tool.function.description }}{% endfor %}
{%- for message in messages %}
    {%- if message.tool_calls and message.content and message.thinking %}
        {{- raise_exception('Cannot pass both content and thinking') }}
    {%- endif %}
    {{- message.role + ':' + (message.thinking or '') + message.content }}
{%- endfor %}"""
"""In the manner of gpt-oss': the parts that fail for messages which other templates accept."""


def test_its_template_gets_one_reasoning_and_a_description():
    tools = [{"type": "function", "function": {"name": "turn", "description": None}}]
    message = Message(role="assistant", content="Let me see.", reasoning="Hm.")
    with_call = Message.model_validate(
        {**message.model_dump(), "tool_calls": [{"function": {"name": "turn", "arguments": "{}"}}]}
    )
    given = [with_call.as_dict(), message.as_dict()]
    template = ChatTemplate(TEMPLATE)
    with pytest.raises(ValueError, match="rejects these messages"):
        template.render(given, tools=tools)
    messages, described = fit_template(given, tools)
    text = template.render(messages, tools=described)
    assert text == "// assistant:Hm.\nLet me see.assistant:Hm.Let me see."
