import pytest
from hypothesis import given

from minimal_vllm.server.message import CallWriter, ContentReader
from minimal_vllm.server.reasoning import ReasoningReader, expected_reasoning
from minimal_vllm.server.tools.hermes import Hermes
from tests.server.tools.cutting import cut, read, read_apart, soup

CALL = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'


def read_reasoning(expected, pieces, answer=ContentReader):
    return read(lambda: ReasoningReader(expected, answer()), pieces)


@pytest.mark.parametrize(
    ("expected", "text", "parts"),
    [
        ("begun", "Hm.</think>Yes.", ("Hm.", "Yes.")),
        ("begun", "<think>Hm.</think>Yes.", ("Hm.", "Yes.")),
        ("begun", "\n<think>\nHm.\n</think>\n\nYes.", ("\nHm.\n", "\n\nYes.")),
        ("begun", "cut off", ("cut off", "")),
        ("begun", "cut off</thi", ("cut off</thi", "")),
        ("begun", "<thi", ("<thi", "")),
        ("begun", "</think>Yes.", ("", "Yes.")),
        ("begun", "a <think> b</think>c</think>d", ("a <think> b", "c</think>d")),
        ("possible", "<think>Hm.</think>Yes.", ("Hm.", "Yes.")),
        ("possible", "\n<think>Hm.</think>Yes.", ("Hm.", "Yes.")),
        ("possible", "<think>cut off", ("cut off", "")),
        ("possible", "Yes. <think>No</think>", ("", "Yes. <think>No</think>")),
        ("possible", "  <thin", ("", "  <thin")),
        ("possible", "", ("", "")),
    ],
)
def test_reasoning_is_parted_from_the_answer(expected, text, parts):
    assert read_reasoning(expected, [text]) == (*parts, [])
    assert read_reasoning(expected, text) == (*parts, [])  # character by character


@pytest.mark.parametrize("expected", ["begun", "possible"])
@given(text_and_pieces=cut(soup("<think>", "</think>", CALL, "\n", "text ")))
def test_however_a_text_is_cut_it_reads_the_same(expected, text_and_pieces):
    def answer():
        return Hermes([]).make_reader(CallWriter(parallel=True))

    text, pieces = text_and_pieces
    whole = read_reasoning(expected, [text], answer)
    assert read_reasoning(expected, pieces, answer) == whole


def test_calls_are_looked_for_in_the_answer_alone():
    text = f"I might {CALL}</think>{CALL}"
    reading = read_reasoning("begun", [text], lambda: Hermes([]).make_reader(CallWriter(True)))
    assert reading == (f"I might {CALL}", "", [("f", "{}")])


def test_reasoning_is_streamed():
    parts = read_apart(ReasoningReader("possible", ContentReader()), ["<think>", "a", " b<", "/c"])
    assert [part.reasoning for part in parts] == ["", "a", " b", "</c"]


@pytest.mark.parametrize(
    ("prompt", "qwen3", "deepseek_r1"),
    [
        ("user: hi\nassistant:\n", "possible", "begun"),
        ("user: hi\nassistant:\n<think>\n", "begun", "begun"),
        ("user: hi\nassistant:\n<think>\n\n</think>\n\n", None, None),
        ("user: <think>\nassistant:\n", "possible", "begun"),
        ("assistant: <think>a</think>b\nuser: hi\nassistant:\n", "possible", "begun"),
    ],
)
def test_the_prompts_end_says_whether_reasoning_comes(prompt, qwen3, deepseek_r1):
    assert expected_reasoning("qwen3", prompt, None) == qwen3
    assert expected_reasoning("deepseek_r1", prompt, None) == deepseek_r1


@pytest.mark.parametrize(
    ("continued", "expected"),
    [
        ("", "possible"),
        ("<think>I", "begun"),
        ("<think>I</think>", None),
        ("The answer", None),
    ],
)
def test_a_continued_message_goes_on_where_it_stopped(continued, expected):
    assert expected_reasoning("qwen3", f"assistant: {continued}", continued) == expected
