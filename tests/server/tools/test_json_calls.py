import pytest
from hypothesis import given

from minimal_vllm.server.message import CallWriter
from minimal_vllm.server.tools.declaration import Function
from minimal_vllm.server.tools.json_calls import Llama3Json, RequiredCalls
from tests.server.tools.cutting import cut, read_apart, read_format, soup

FUNCTIONS = [Function(name="weather"), Function(name="time")]
LLAMA = Llama3Json(FUNCTIONS)
REQUIRED = RequiredCalls(FUNCTIONS, parallel=True)
WEATHER = '{"name": "weather", "parameters": {"city": "Paris"}}'
TIME = '{"name": "time", "parameters": {}}'
CALLED = [("weather", '{"city": "Paris"}'), ("time", "{}")]

LLAMA_CASES = {
    "a text": ("It is {5}.", ("It is {5}.", [])),
    "space before a text": ("\n\nIt is", ("\n\nIt is", [])),
    "a call": (WEATHER, ("", CALLED[:1])),
    "a call behind the tag": (f"<|python_tag|>{WEATHER}", ("", CALLED[:1])),
    "a call behind spaces": (f"\n {WEATHER}", ("", CALLED[:1])),
    "two calls": (f"{WEATHER}; {TIME}", ("", CALLED)),
    "two calls on two lines": (f"{WEATHER}\n{TIME}\n", ("", CALLED)),
    "arguments, not parameters": (
        '{"name": "time", "arguments": {"a": {}}}',
        ("", [("time", '{"a": {}}')]),
    ),
    "the type first": (
        '{"type": "function", "name": "time", "parameters": {"a": 1}}',
        ("", [("time", '{"a": 1}')]),
    ),
    "text behind a call": (f"{TIME} I hope.", ("I hope.", CALLED[1:])),
    "a brace in a string": (
        '{"name": "time", "parameters": {"a": "}"}}',
        ("", [("time", '{"a": "}"}')]),
    ),
    "cut off": (WEATHER[:-6], ("", [("weather", '{"city": "Pa')])),
}

NO_CALLS = {
    "another object": '{"answer": 42} is it',
    "a call in a text": f"I call {WEATHER}",
    "the tag before something else": "<|python_tag|>print(1)",
    "half a tag": "<|python",
    "the tag alone": "<|python_tag|>",
    "spaces alone": " \n",
    "braces in a text": "{see below}",
    "cut off in the name": '{"name": "wea',
    "no object for parameters": '{"name": "time", "parameters": "{}"}',
}


@pytest.mark.parametrize("name", LLAMA_CASES)
def test_llamas_calls_are_found(name):
    text, expected = LLAMA_CASES[name]
    assert read_format(LLAMA, [text]) == expected
    assert read_format(LLAMA, text) == expected  # character by character


@pytest.mark.parametrize("name", NO_CALLS)
def test_what_is_no_call_is_content(name):
    text = NO_CALLS[name]
    assert read_format(LLAMA, [text]) == (text, [])
    assert read_format(LLAMA, text) == (text, [])


def test_text_of_llama_is_not_held_back():
    parts = read_apart(LLAMA.make_reader(CallWriter(parallel=True)), ["It", " is", " {5}"])
    assert [part.content for part in parts] == ["It", " is", " {5}"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"[{WEATHER}]", ("", CALLED[:1])),
        (f"[{WEATHER}, {TIME}]", ("", CALLED)),
        (f"[\n  {WEATHER},\n  {TIME}\n]", ("", CALLED)),
        (f"[{WEATHER}, ", ("", CALLED[:1])),
        (f"[{WEATHER[:-6]}", ("", [("weather", '{"city": "Pa')])),
        (f"[{WEATHER}, {TIME[:9]}", (f", {TIME[:9]}", CALLED[:1])),
        ("[", ("[", [])),
        ('[{"name": "ti', ('[{"name": "ti', [])),
    ],
)
def test_required_calls_are_the_elements_of_an_array(text, expected):
    assert read_format(REQUIRED, [text]) == expected
    assert read_format(REQUIRED, text) == expected


@pytest.mark.parametrize("tool_format", [LLAMA, REQUIRED])
@given(
    text_and_pieces=cut(
        soup(WEATHER, TIME, "<|python_tag|>", "; ", "[", ", ", "]", '{"a": 1}', " text")
    )
)
def test_however_a_text_is_cut_it_reads_the_same(tool_format, text_and_pieces):
    text, pieces = text_and_pieces
    assert read_format(tool_format, pieces) == read_format(tool_format, [text])


def test_without_parallel_calls_one_is_required():
    assert "(" in REQUIRED.constraint().grammar.splitlines()[0]
    one = RequiredCalls(FUNCTIONS, parallel=False).constraint().grammar
    assert one.splitlines()[0] == 'start: "[" call "]"'


def test_only_strict_functions_constrain_llama():
    assert LLAMA.constraint() is None
    assert Llama3Json([Function(name="time", strict=True)]).constraint() is not None
