import json

import pytest
from hypothesis import given

from minimal_vllm.server.message import CallWriter
from minimal_vllm.server.tools.declaration import Function
from minimal_vllm.server.tools.hermes import Hermes
from tests.server.tools.cutting import cut, read_apart, read_format, soup

FORMAT = Hermes([Function(name="weather"), Function(name="time")])
WEATHER = '{"name": "weather", "arguments": {"city": "Paris"}}'
TIME = '{"name": "time", "arguments": {}}'


def tagged(call):
    return f"<tool_call>\n{call}\n</tool_call>"


CASES = {
    "a text": ("It is 5 < 6. ", ("It is 5 < 6. ", [])),
    "a call": (tagged(WEATHER), ("", [("weather", '{"city": "Paris"}')])),
    "text, then a call": (
        f"Let me see.\n\n{tagged(WEATHER)}\n",
        ("Let me see.", [("weather", '{"city": "Paris"}')]),
    ),
    "two calls": (
        f"{tagged(WEATHER)}\n{tagged(TIME)}",
        ("", [("weather", '{"city": "Paris"}'), ("time", "{}")]),
    ),
    "text behind a call": (f"{tagged(TIME)}\nDone.", ("Done.", [("time", "{}")])),
    "no closing tag": (f"<tool_call>{TIME}", ("", [("time", "{}")])),
    "the closing tag missing between two": (
        f"<tool_call>{TIME}\n<tool_call>{TIME}</tool_call>",
        ("", [("time", "{}")] * 2),
    ),
    "half a closing tag": (f"<tool_call>{TIME}\n</tool_", ("", [("time", "{}")])),
    "no space": (
        '<tool_call>{"name":"time","arguments":{"a":[1]}}</tool_call>',
        ("", [("time", '{"a":[1]}')]),
    ),
    "arguments first": (
        tagged('{"arguments": {"city": "Köln"}, "name": "weather"}'),
        ("", [("weather", '{"city": "Köln"}')]),
    ),
    "more keys": (
        tagged('{"name": "time", "arguments": {}, "id": "}"}'),
        ("", [("time", "{}")]),
    ),
    "tags and braces in a string": (
        tagged(r'{"name": "time", "arguments": {"a": "</tool_call>}\"{"}}'),
        ("", [("time", r'{"a": "</tool_call>}\"{"}')]),
    ),
    "an escape in the name": (
        tagged(r'{"name": "t\u0069me", "arguments": {}}'),
        ("", [("time", "{}")]),
    ),
    "cut off in its arguments": (
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Pa',
        ("", [("weather", '{"city": "Pa')]),
    ),
    "arguments without an end": (
        '<tool_call>{"name": "time", "arguments": {"a": 1</tool_call> Bye',
        ("Bye", [("time", '{"a": 1')]),
    ),
}

MALFORMED = {
    "an empty tag": "<tool_call></tool_call>",
    "no JSON": "Hm, <tool_call>\nweather(Paris)\n</tool_call>",
    "a space that JSON doesn't know": tagged(TIME.replace(": ", ":\N{NO-BREAK SPACE}")),
    "no name": tagged('{"arguments": {}}'),
    "no arguments": tagged('{"name": "time"}'),
    "arguments that are no object": tagged('{"name": "time", "arguments": [1]}'),
    "a number for a name": tagged('{"name": 5, "arguments": {}}'),
    "a name that is no JSON": tagged('{"name": "a\nb", "arguments": {}}'),
    "cut off in its name": 'So: <tool_call>\n{"name": "wea',
    "cut off in its tag": "So: <tool_",
    "cut off behind its tag": "So: <tool_call>\n",
    "broken before its arguments": '<tool_call>{"name": "time", oops}</tool_call>',
    "nested without end": "<tool_call>{" + "[" * 100_000 + "]" * 100_000 + "}</tool_call>",
}


@pytest.mark.parametrize("name", CASES)
def test_calls_are_found(name):
    text, expected = CASES[name]
    assert read_format(FORMAT, [text]) == expected
    assert read_format(FORMAT, text) == expected  # character by character


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_call_is_content(name):
    text = MALFORMED[name]
    assert read_format(FORMAT, [text]) == (text, [])
    assert read_format(FORMAT, text[:2000]) == (text[:2000], [])


@given(cut(soup("<tool_call>", "\n", "</tool_call>", WEATHER, TIME, '{"arguments": {}', "text ")))
def test_however_a_text_is_cut_it_reads_the_same(text_and_pieces):
    text, pieces = text_and_pieces
    assert read_format(FORMAT, pieces) == read_format(FORMAT, [text])


def test_arguments_come_as_they_are_written():
    text = '<tool_call>{"name": "time", "arguments": {"zone": "a b"}}'
    parts = read_apart(FORMAT.make_reader(CallWriter(parallel=True)), text)
    pieces = [call.arguments for part in parts for call in part.calls]
    assert pieces == list('{"zone": "a b"}')


def test_text_is_not_held_back_longer_than_it_must_be():
    pieces = ("Hello", " world", " <", "b>", " x <tool", "box")
    parts = read_apart(FORMAT.make_reader(CallWriter(parallel=True)), pieces)
    expected = ["Hello", " world", "", " <b>", " x", " <toolbox"]
    assert [part.content for part in parts] == expected


def test_of_calls_that_may_not_be_parallel_the_first_is_kept():
    text = f"{tagged(TIME)}\n{tagged(WEATHER)}"
    assert read_format(FORMAT, text, parallel=False) == ("", [("time", "{}")])


def test_only_strict_functions_constrain_the_text():
    assert FORMAT.constraint() is None
    strict = Function(name="time", parameters={"properties": {}}, strict=True)
    grammar = Hermes([strict, Function(name="weather")]).constraint().grammar
    assert json.dumps('{"name": "weather", "arguments": ') in grammar


@pytest.mark.parametrize(
    "call",
    [
        '{"arguments": {"a": "\\ud800"}, "name": "f"}',
        '{"name": "\\ud800", "arguments": {}}',
    ],
)
def test_what_can_not_be_written_as_utf8_is_no_call(call):
    """An answer with half of a surrogate pair in it could not be sent."""
    content, calls = read_format(Hermes([]), [f"<tool_call>{call}</tool_call>"])
    assert calls == []
    content.encode()
