"""Structured outputs over HTTP: they match, and what can't be matched is refused by its field."""

import asyncio
import json
import re

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from minimal_vllm.sampling_params import StructuredOutputsParams
from minimal_vllm.server.structured import Constraint
from tests.server.harness import PATIENCE, TOOL_MODEL, make_demo_service, process
from tests.test_structured_outputs import SCHEMAS

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hello"}]
BODIES = {COMPLETIONS: {"prompt": "Hello"}, CHAT: {"messages": MESSAGES}}
PLAIN = {"chat_template_kwargs": {"enable_thinking": False}}


def json_schema(schema):
    return {"type": "json_schema", "json_schema": {"name": "it", "strict": True, "schema": schema}}


@pytest.fixture(scope="module")
def chat(tool_server):
    def chat(extra=None, **options):
        arguments = {"model": TOOL_MODEL, "messages": MESSAGES, "max_tokens": 480, **options}
        create = tool_server.client().chat.completions.create
        return create(extra_body={**PLAIN, **(extra or {})}, **arguments)

    return chat


@pytest.mark.parametrize("name", SCHEMAS)
def test_ten_of_ten_answers_validate(chat, name):
    schema = SCHEMAS[name]
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    answer = chat(response_format=json_schema(schema), n=10, seed=1)
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 10
    for choice in answer.choices:
        validator.validate(json.loads(choice.message.content))


def test_a_completion_can_be_held_to_a_schema(tool_server):
    schema = SCHEMAS["nested objects"]
    answer = tool_server.client().completions.create(
        model=TOOL_MODEL,
        prompt=["Hello", "Bye"],
        max_tokens=480,
        seed=1,
        extra_body={"response_format": json_schema(schema)},
    )
    for choice in answer.choices:
        jsonschema.validate(json.loads(choice.text), schema)


def test_a_stream_is_held_to_the_schema_too(chat):
    form = json_schema(SCHEMAS["nested objects"])
    chunks = list(chat(response_format=form, seed=3, stream=True))
    text = "".join(chunk.choices[0].delta.content for chunk in chunks)
    assert text == chat(response_format=form, seed=3).choices[0].message.content
    jsonschema.validate(json.loads(text), SCHEMAS["nested objects"])


class Captain(BaseModel):
    name: str = Field(max_length=8)
    age: int = Field(ge=18, le=99)


@pytest.mark.client("openai", "structured output")
def test_a_pydantic_model_comes_back_as_an_object(tool_server):
    completions = tool_server.client().chat.completions
    answer = completions.parse(
        model=TOOL_MODEL,
        messages=MESSAGES,
        response_format=Captain,
        max_tokens=480,
        seed=1,
        extra_body=PLAIN,
    )
    assert isinstance(answer.choices[0].message.parsed, Captain)


@pytest.mark.client("openai", "structured output", "streamed")
def test_a_pydantic_model_comes_back_from_the_async_client_s_stream(tool_server):
    async def run():
        async with tool_server.async_client() as client:
            manager = client.chat.completions.stream(
                model=TOOL_MODEL,
                messages=MESSAGES,
                response_format=Captain,
                max_tokens=480,
                seed=1,
                extra_body=PLAIN,
            )
            async with manager as stream:
                return await stream.get_final_completion()

    assert isinstance(asyncio.run(run()).choices[0].message.parsed, Captain)


def test_a_json_object_is_an_object_or_cut_off(chat):
    answer = chat(response_format={"type": "json_object"}, n=5, seed=1, max_tokens=200)
    for choice in answer.choices:
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)
        else:
            assert choice.message.content.startswith("{")


@pytest.mark.parametrize(
    ("wanted", "pattern"),
    [
        ({"json": {"type": "integer", "minimum": 7, "maximum": 7}}, "7"),
        ({"json": '{"const": "a b"}'}, '"a b"'),
        ({"regex": "[ab]{3}-[0-9]"}, "[ab]{3}-[0-9]"),
        ({"choice": ["yes", "no"]}, "yes|no"),
        ({"grammar": 'start: "a" | "b" "c"'}, "a|bc"),
        ({"json_object": True, "disable_any_whitespace": True, "regex": None}, r"\{(?s:.)*"),
    ],
)
@pytest.mark.parametrize("path", BODIES)
def test_vllms_structured_outputs(tool_server, path, wanted, pattern):
    extra = PLAIN if path == CHAT else {}
    body = {**BODIES[path], **extra, "structured_outputs": wanted, "max_tokens": 60, "seed": 2}
    (choice,) = tool_server.post(path, **body).json()["choices"]
    assert re.fullmatch(
        pattern, choice["text"] if path == COMPLETIONS else choice["message"]["content"]
    )


def test_a_text_is_asked_for_by_nothing(chat):
    plain = chat(seed=4, max_tokens=8)
    assert chat(seed=4, max_tokens=8, response_format={"type": "text"}).choices == plain.choices


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (
            {"structured_outputs": {"regex": "[a"}},
            "structured_outputs.regex",
            "unclosed character class",
        ),
        ({"structured_outputs": {"json": {"type": "strin"}}}, "structured_outputs.json", "strin"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "Expecting property"),
        ({"structured_outputs": {"grammar": "a"}}, "structured_outputs.grammar", "Expected ::="),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "at least 1 item"),
        ({"structured_outputs": {}}, "structured_outputs", "exactly one of json, regex"),
        (
            {"structured_outputs": {"regex": "a", "json": {}}},
            "structured_outputs",
            "not json and regex",
        ),
        (
            {"structured_outputs": {"structural_tag": "{}"}},
            "structured_outputs.structural_tag",
            "not supported here",
        ),
        ({"response_format": {"type": "xml"}}, "response_format.type", "not 'xml'"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema"),
        (
            {
                "response_format": {
                    "type": "json_object",
                    "json_schema": {"name": "a", "schema": {}},
                }
            },
            "response_format",
            "json_schema is for the type json_schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
            "missing",
        ),
        (
            {"response_format": json_schema({"not": {}})},
            "response_format.json_schema.schema",
            'Unimplemented keys: ["not"]',
        ),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "response_format",
            "give one of them",
        ),
    ],
)
@pytest.mark.parametrize("path", BODIES)
def test_what_can_not_be_matched_is_a_400_that_names_the_field(
    tool_server, path, body, param, message
):
    response = tool_server.post(path, **BODIES[path], **body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert message in error["message"]
    assert error["message"].startswith(param)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_leaves_no_token_to_choose_from_is_a_400_that_says_by_what(
    tool_server, stream
):
    (token,) = tool_server.post("/tokenize", prompt="b").json()["tokens"]
    wanted = {"structured_outputs": {"regex": "aa"}, "allowed_token_ids": [token]}
    response = tool_server.post(COMPLETIONS, prompt="a", stream=stream, **wanted)
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert message.startswith("no token could be sampled: ")
    assert message.endswith("; tokens are restricted by allowed_token_ids, structured_outputs")


def test_the_client_sees_a_bad_request(chat):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(response_format=json_schema({"type": "strin"}))
    assert caught.value.param == "response_format.json_schema.schema"


def test_without_the_library_the_error_says_what_to_install():
    program = """if True:
        import importlib.util, runpy
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name: None if name == "llguidance" else find(name)
        runpy.run_module("minimal_vllm", run_name="__main__")
    """
    with process(start=("-c", program)) as server:
        response = server.post(COMPLETIONS, prompt="a", structured_outputs={"regex": "a"})
        assert response.status_code == 400
        assert "pip install 'minimal-vllm[structured]'" in response.json()["error"]["message"]
        assert server.post(COMPLETIONS, prompt="a", max_tokens=1).status_code == 200


# ---- compiling ----------------------------------------------------------------------------------


class SlowCheck:
    """Takes the place of ``check_grammar``, and does not return before the event loop says so."""

    def __init__(self):
        self.loop = asyncio.get_running_loop()
        self.go_on = asyncio.Event()
        self.sources = []

    def __call__(self, source):
        asyncio.run_coroutine_threadsafe(self.go_on.wait(), self.loop).result(PATIENCE)
        self.sources.append(source)
        return source


def constrain(service, regex):
    params = service.llm.get_default_sampling_params()
    return service.constrain(params, Constraint(StructuredOutputsParams(regex=regex), "it"))


def test_the_event_loop_turns_while_a_grammar_compiles_and_the_engine_finds_it_compiled(
    monkeypatch,
):
    async def run():
        service, check = make_demo_service(), SlowCheck()
        monkeypatch.setattr("minimal_vllm.sampling.grammar.check_grammar", check)
        task = asyncio.create_task(constrain(service, "[ab]{4}"))
        await asyncio.sleep(0)
        check.go_on.set()
        return service, await task, check

    service, params, check = asyncio.run(run())
    (output,) = service.llm.generate("a", params, use_tqdm=False)
    assert re.fullmatch("[ab]{4}", output.outputs[0].text)
    assert len(check.sources) == 1


def test_no_flood_of_grammars_takes_the_threads_that_others_need(monkeypatch):
    async def run():
        service, check = make_demo_service(), SlowCheck()
        monkeypatch.setattr("minimal_vllm.sampling.grammar.check_grammar", check)
        flood = [asyncio.create_task(constrain(service, f"a{{{n}}}")) for n in range(50)]
        encoded = await service.encode(["Hello"], add_special_tokens=False)
        assert check.sources == []
        check.go_on.set()
        return encoded, await asyncio.gather(*flood)

    encoded, params = asyncio.run(run())
    assert encoded[0]
    assert len(params) == 50
