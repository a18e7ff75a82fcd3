"""Tool calls over HTTP, from a model with random weights: what holds it to a form makes them."""

import asyncio
import json
from typing import Literal

import jsonschema
import openai
import pytest
from checkpoints import BYTES
from pydantic import BaseModel, Field

from tests.server.harness import TOOL_MODEL, process

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Add them."}]
PLAIN = {"chat_template_kwargs": {"enable_thinking": False}}


class Number(BaseModel):
    value: int = Field(ge=0, le=99)


class Add(BaseModel):
    """Add two numbers."""

    left: Number
    right: Number


class Paint(BaseModel):
    color: Literal["red", "blue"]
    left: bool


TOOLS = [openai.pydantic_function_tool(Add), openai.pydantic_function_tool(Paint)]
LOOSE = [{"type": "function", "function": {**TOOLS[1]["function"], "strict": False}}]
SCHEMAS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
NO_SPACES = {str(BYTES.index(space)): -100 for space in "ĠĉĊč"}
"""Random models like white space in JSON, which takes time; this is a byte-level BPE's."""

PAINT = {"type": "function", "function": {"name": "Paint"}}


FORCED = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}


def arguments(extra=None, logit_bias=None, **options):
    """The arguments of ``chat.completions.create`` and its kin."""
    return {
        "model": TOOL_MODEL,
        "messages": MESSAGES,
        "max_tokens": 1000,
        "seed": 1,
        "logit_bias": NO_SPACES | (logit_bias or {}),
        "extra_body": {**PLAIN, **(extra or {})},
        **options,
    }


def ask(server, **options):
    return server.client().chat.completions.create(**arguments(**options))


def token(server, text):
    (token_id,) = server.post("/tokenize", prompt=text).json()["tokens"]
    return token_id


def called(message):
    """The calls of a message: names and arguments, which are what the tool's schema says."""
    calls = [
        (call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls
    ]
    for name, arguments in calls:
        jsonschema.validate(arguments, SCHEMAS[name])
    assert len({call.id for call in message.tool_calls}) == len(calls)
    return calls


def put_together(chunks):
    """``(content, [(name, arguments), …], finish_reason)`` of a stream."""
    content, calls, reason = "", [], None
    for chunk in chunks:
        (choice,) = chunk.choices
        content += choice.delta.content or ""
        for part in choice.delta.tool_calls or ():
            if part.index == len(calls):
                assert (part.type, bool(part.id)) == ("function", True)
                calls.append([part.function.name, ""])
            else:
                assert part.index == len(calls) - 1
                assert part.id is part.type is part.function.name is None
            calls[-1][1] += part.function.arguments
        reason = choice.finish_reason or reason
    return content, [tuple(call) for call in calls], reason


def parts_of(answer):
    """The same of a whole answer."""
    (choice,) = answer.choices
    calls = [
        (each.function.name, each.function.arguments) for each in choice.message.tool_calls or ()
    ]
    return choice.message.content or "", calls, choice.finish_reason


# ---- calls that the model has to make ------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_required_call_is_one_of_the_tools(tool_server, seed):
    (choice,) = ask(tool_server, seed=seed, **FORCED).choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert len(called(choice.message)) == 1


def test_a_named_call_is_of_this_tool(tool_server):
    (choice,) = ask(tool_server, tools=TOOLS, tool_choice=PAINT).choices
    assert (choice.finish_reason, choice.message.content) == ("stop", None)  # as in OpenAI's API
    ((name, _),) = called(choice.message)
    assert name == "Paint"


def test_a_tool_without_parameters_takes_no_arguments(tool_server):
    tools = [{"type": "function", "function": {"name": "stop"}}]
    choice = {"type": "function", "function": {"name": "stop"}}
    assert json.loads(parts_of(ask(tool_server, tools=tools, tool_choice=choice))[1][0][1]) == {}


@pytest.mark.parametrize("choice", ["required", PAINT], ids=["required", "named"])
def test_a_stream_of_calls_says_what_the_whole_says(tool_server, choice):
    options = {**FORCED, "tool_choice": choice}
    chunks = list(ask(tool_server, stream=True, **options))
    assert put_together(chunks) == parts_of(ask(tool_server, **options))


def test_the_async_client_gets_the_same(tool_server):
    async def run():
        async with tool_server.async_client() as client:
            create = client.chat.completions.create
            whole = await create(**arguments(**FORCED))
            stream = await create(**arguments(**FORCED, stream=True))
            return parts_of(whole), put_together([chunk async for chunk in stream])

    assert asyncio.run(run()) == (parts_of(ask(tool_server, **FORCED)),) * 2


@pytest.mark.client("openai", "tools")
def test_arguments_come_back_as_objects(tool_server):
    answer = tool_server.client().chat.completions.parse(**arguments(**FORCED))
    (call,) = answer.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Add | Paint)


@pytest.mark.client("openai", "tools", "streamed")
def test_the_client_s_streaming_helper_follows_a_call(tool_server):
    with tool_server.client().chat.completions.stream(**arguments(**FORCED)) as stream:
        events = list(stream)
        final = stream.get_final_completion().choices[0].message
    deltas = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    (done,) = (event for event in events if event.type == "tool_calls.function.arguments.done")
    assert "".join(event.arguments_delta for event in deltas) == done.arguments
    assert isinstance(done.parsed_arguments, Add | Paint)
    assert final.tool_calls[0].function.parsed_arguments == done.parsed_arguments


def test_a_call_that_is_cut_off_says_so(tool_server):
    answer = ask(tool_server, tools=TOOLS, tool_choice=PAINT, max_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert parts_of(answer)[1][0][0] == "Paint"


@pytest.mark.parametrize("stream", [False, True])
def test_each_of_n_answers_has_calls_of_its_own(tool_server, stream):
    options = {"tools": TOOLS, "tool_choice": PAINT, "temperature": 30}
    answer = ask(tool_server, n=6, stream=stream, **options)
    texts = [""] * 6
    for chunk in answer if stream else [answer]:
        for choice in chunk.choices:
            for call in (choice.delta if stream else choice.message).tool_calls or ():
                texts[choice.index] += call.function.arguments
    assert len(set(texts)) > 1
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMAS["Paint"])


# ---- calls that the model makes by itself --------------------------------------------------------


def biased_towards(server, opening):
    """Makes a random model open a call first, and end where it may."""
    return {
        "logit_bias": {str(token(server, opening)): 50, str(token(server, "<|endoftext|>")): 100},
        "extra": {"min_tokens": 1},
    }


@pytest.fixture(scope="module")
def llama_server(tool_checkpoint):
    """The same model, said to write calls as Llama 3 does, and to reason as DeepSeek R1 does."""
    options = ["--enable-auto-tool-choice", "--tool-call-parser=llama3_json"]
    with process(
        tool_checkpoint,
        f"--served-model-name={TOOL_MODEL}",
        *options,
        "--reasoning-parser=deepseek_r1",
    ) as server:
        yield server


@pytest.mark.parametrize(
    ("name", "opening"), [("tool_server", "<tool_call>"), ("llama_server", "{")]
)
def test_a_call_in_the_model_s_own_format_is_found(request, name, opening):
    server = request.getfixturevalue(name)
    options = {"tools": TOOLS, **biased_towards(server, opening)}
    answer = ask(server, **options)
    assert (answer.choices[0].finish_reason, answer.choices[0].message.content) == (
        "tool_calls",
        None,
    )
    assert len(called(answer.choices[0].message)) == 1
    chunks = list(ask(server, stream=True, **options))
    assert put_together(chunks) == parts_of(answer)


def test_what_is_no_call_is_content(tool_server):
    end = {str(token(tool_server, "<|endoftext|>")): 3}
    answer = ask(tool_server, tools=LOOSE, max_tokens=60, logit_bias=end)
    content, calls, reason = parts_of(answer)
    assert content
    assert (calls, reason in ("stop", "length")) == ([], True)
    same = ask(tool_server, tools=LOOSE, max_tokens=60, logit_bias=end, stream=True)
    assert put_together(list(same)) == (content, calls, reason)


def test_a_malformed_call_is_content(tool_server):
    bias = {str(token(tool_server, "<tool_call>")): 100}
    content, calls, reason = parts_of(ask(tool_server, tools=LOOSE, max_tokens=3, logit_bias=bias))
    assert (content, calls, reason) == ("<tool_call>" * 3, [], "length")


def test_with_tool_choice_none_nothing_is_a_call(tool_server):
    options = {"tools": TOOLS, "tool_choice": "none", "max_tokens": 3}
    bias = {str(token(tool_server, "<tool_call>")): 100}
    assert parts_of(ask(tool_server, logit_bias=bias, **options))[0] == "<tool_call>" * 3
    answer = ask(tool_server, extra={"structured_outputs": {"regex": "[a-c]{3}"}}, **options)
    assert len(parts_of(answer)[0]) == 3


def test_without_a_parser_there_is_no_auto(server):
    body = {"messages": MESSAGES, "tools": TOOLS}
    for choice in ({}, {"tool_choice": "auto"}):
        response = server.post(CHAT, **body, **choice)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] == "tool_choice"
        assert "--enable-auto-tool-choice and --tool-call-parser" in error["message"]
    assert server.post(CHAT, **body, tool_choice="none", max_tokens=1).status_code == 200


# ---- reasoning ----------------------------------------------------------------------------------


def thinking(server):
    """Makes a random model think some, and then stop thinking."""
    words = ("<think>", "the", "</think>", "<|endoftext|>")
    bias = {str(token(server, word)): 100 for word in words}
    return {"logit_bias": bias, "temperature": 10, "seed": 5}


def both_names(part):
    reasoning = getattr(part, "reasoning", None)
    assert getattr(part, "reasoning_content", None) == reasoning
    return reasoning or ""


@pytest.mark.parametrize("name", ["tool_server", "llama_server"])
@pytest.mark.parametrize(
    "wanted",
    [{"structured_outputs": {"regex": "[0-9]{4}"}}, {"tools": TOOLS, "tool_choice": PAINT}],
)
def test_reasoning_comes_before_what_is_held_to_a_form(request, name, wanted):
    server = request.getfixturevalue(name)
    options = {"extra": {"chat_template_kwargs": {}, **wanted}, **thinking(server)}
    (choice,) = ask(server, **options).choices
    reasoning = both_names(choice.message)
    assert set(reasoning.replace("<think>", ".").replace("the", ".")) == {"."}
    if "tools" in wanted:
        assert choice.message.content is None
        called(choice.message)
    else:
        assert choice.message.content.isdigit()
    chunks = list(ask(server, stream=True, **options))
    assert "".join(both_names(chunk.choices[0].delta) for chunk in chunks) == reasoning
    content, calls, _ = put_together(chunks)
    assert content == (choice.message.content or "")
    assert [name for name, _ in calls] == (["Paint"] if "tools" in wanted else [])


def test_without_thinking_there_is_no_reasoning(tool_server, llama_server):
    for server in (tool_server, llama_server):
        message = ask(server, max_tokens=5, extra={"ignore_eos": True}).choices[0].message
        assert message.content
        assert (message.reasoning, message.reasoning_content) == (None, None)


def test_thinking_that_is_cut_off_is_reasoning_and_no_content(llama_server):
    extra = {"chat_template_kwargs": {}, "ignore_eos": True}
    (choice,) = ask(llama_server, max_tokens=5, extra=extra).choices
    assert (choice.finish_reason, choice.message.content) == ("length", None)
    assert both_names(choice.message)


def test_a_message_that_is_continued_within_its_reasoning_goes_on_with_it(tool_server):
    messages = [*MESSAGES, {"role": "assistant", "content": "<think>I might"}]
    extra = {"add_generation_prompt": False, "continue_final_message": True, "ignore_eos": True}
    message = ask(tool_server, messages=messages, max_tokens=5, extra=extra).choices[0].message
    assert message.content is None
    assert both_names(message)


# ---- conversations ------------------------------------------------------------------------------


def test_tools_calls_and_results_stand_in_the_prompt(tool_server):
    call = {
        "id": "call-1",
        "type": "function",
        "function": {"name": "Paint", "arguments": '{"color": "red"}'},
    }
    tools = [{"type": "function", "function": {"name": "Paint", "description": "<b>"}}]
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": None, "reasoning_content": "Hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call-1", "content": "done"},
    ]
    tokens = tool_server.post("/tokenize", messages=messages, tools=tools).json()["tokens"]
    prompt = tool_server.post("/detokenize", tokens=tokens).json()["prompt"]
    assert prompt == (
        "<|im_start|>system\nTools:\n"
        '{"type": "function", "function": {"name": "Paint", "description": "<b>", '
        '"parameters": null}}<|im_end|>\n'
        "<|im_start|>user\nAdd them.<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nHm\n</think>\n\n"
        '\n<tool_call>\n{"name": "Paint", "arguments": {"color": "red"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>tool\n[call-1] done<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_an_answer_can_be_sent_back_with_the_result_of_its_call(tool_server):
    extra = {"chat_template_kwargs": {}}
    options = {"tools": TOOLS, "tool_choice": PAINT, "extra": extra, **thinking(tool_server)}
    message = ask(tool_server, **options).choices[0].message
    (call,) = message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "Well done."}
    answer = ask(tool_server, messages=[*MESSAGES, message, result], max_tokens=3)
    assert answer.usage.completion_tokens <= 3
    assert answer.usage.prompt_tokens > 100


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"tool_choice": PAINT}, "tool_choice", "there are no tools"),
        ({"tools": LOOSE, "tool_choice": "maybe"}, "tool_choice", "not 'maybe'"),
        (
            {"tools": LOOSE, "tool_choice": {"type": "function", "function": {"name": "Sub"}}},
            "tool_choice.function.name",
            "no tool 'Sub'",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "should be 'function'"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name", "missing"),
        (
            {
                "tools": [
                    {"type": "function", "function": {"name": "f", "parameters": {"type": "null"}}}
                ]
            },
            "tools.0.function.parameters",
            "arguments are an object",
        ),
        ({"tools": LOOSE * 2}, "tools", "two tools have the same name"),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {
                            "name": "f",
                            "strict": True,
                            "parameters": {"properties": {"a": {"uniqueItems": True}}},
                        },
                    }
                ],
                "tool_choice": "required",
            },
            "tools.0.function.parameters.properties.a",
            "'uniqueItems' can't be enforced in a strict tool",
        ),
        (
            {"tools": LOOSE, "structured_outputs": {"grammar": 'start: "a"'}},
            "structured_outputs.grammar",
            "set tool_choice to none",
        ),
    ],
)
def test_a_bad_request_for_tools_is_a_400_that_names_the_field(tool_server, body, param, message):
    response = tool_server.post(CHAT, messages=MESSAGES, **body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert message in error["message"]
