"""Templates get messages in the form that they are written for, whatever the messages hold."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimal_vllm.text.chat_template import ChatTemplate
from minimal_vllm.text.messages import MAX_DEPTH, parse_arguments
from tests.text.model_templates import TEMPLATES

USER = {"role": "user", "content": "Hi"}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "1"}


def calling(arguments, content=None):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def render(name, *messages, **options):
    return ChatTemplate(TEMPLATES[name]).render(messages, **options)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("chatml", "<|im_start|>assistant\n<|im_end|>"),
        ("deepseek-r1", '<call>function<sep>f\n```json\n{"a": 1}\n```'),
        ("mistral", '[CALL]f{"a": 1}'),
        ("qwen3", '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'),
        ("qwen3-coder", "<function=f><parameter=a>1</parameter>"),
    ],
)
@pytest.mark.parametrize("arguments", ['{"a": 1}', {"a": 1}])
def test_a_call_is_written_as_the_template_writes_calls(name, written, arguments):
    assert written in render(name, USER, calling(arguments), RESULT)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("deepseek-r1", '```json\n{"a\n```'),
        ("mistral", '[CALL]f{"a'),
        ("qwen3", '"arguments": {"a}</tool_call>'),
        ("qwen3-coder", '<parameter=arguments>{"a</parameter>'),
    ],
)
def test_arguments_that_were_cut_off_are_written_as_far_as_they_go(name, written):
    assert written in render(name, USER, calling('{"a'), RESULT)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_list_of_texts_goes_to_templates_that_iterate_and_is_joined_for_others(name):
    parts = [{"type": "text", "text": "a"}, "b", {"type": "refusal", "refusal": "c"}]
    text = render(name, {"role": "user", "content": parts})
    iterates = name in ("mistral", "qwen3-coder")
    assert ("<p>a<p>b<p>c" if iterates else "a\nb\nc") in text


PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
PRINTS = "{% for m in messages %}{{ m.content | tojson }}{% endfor %}"
ITERATES = (
    PRINTS + "{% for m in messages if false %}{% for p in m.content %}{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("content_format", "content", "template", "expected"),
    [
        ("auto", PARTS, PRINTS, "a\nb"),
        ("auto", PARTS, ITERATES, PARTS),
        ("auto", "a", ITERATES, "a"),
        ("string", PARTS, PRINTS, "a\nb"),
        ("string", PARTS, ITERATES, "a\nb"),
        ("openai", PARTS, PRINTS, PARTS),
        ("openai", "a", PRINTS, PARTS[:1]),
        ("openai", "", PRINTS, []),
    ],
)
def test_content_has_the_format_that_is_asked_for(content_format, content, template, expected):
    text = ChatTemplate(template).render(
        [{"role": "user", "content": content}], chat_template_content_format=content_format
    )
    assert json.loads(text) == expected


def test_a_template_that_fails_with_the_format_that_is_asked_for_gets_no_other():
    parts = {"role": "user", "content": PARTS}
    template = ChatTemplate("{{ '' + messages[0].content }}")
    assert template.render([parts]) == "a\nb"
    with pytest.raises(ValueError, match="can only concatenate str"):
        template.render([parts], chat_template_content_format="openai")


def test_an_unknown_content_format_is_an_error_that_names_those_that_exist():
    with pytest.raises(ValueError, match="one of auto, string, openai, not 'list'"):
        ChatTemplate(PRINTS).render([USER], chat_template_content_format="list")


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_list_of_texts_can_be_continued(name):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b c"}]
    options = {"add_generation_prompt": False, "continue_final_message": True}
    message = {"role": "assistant", "content": parts}
    text = render(name, USER, message, **options)
    assert text.endswith("b c")


def test_content_is_none_only_beside_calls_and_only_for_templates_that_ask_for_it():
    asks = ChatTemplate("{% for m in messages %}{{ m.content is none }},{% endfor %}")
    prints = ChatTemplate("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    messages = [calling("{}"), {"role": "assistant", "content": None, "reasoning": "Hm"}]
    assert asks.render(messages) == "True,False,"
    assert prints.render(messages) == "[][]"


def test_a_template_that_fails_in_every_form_is_blamed_for_its_first_failure():
    with pytest.raises(ValueError, match=r"can only concatenate str \(not .dict.\) to str"):
        ChatTemplate(
            "{% for c in messages[0].tool_calls %}{{ '' + c.function.arguments }}{% endfor %}"
            "{{ messages[0].content + 1 }}"
        ).render([calling("{}", "text")])


ARGUMENTS = st.text(max_size=20) | st.sampled_from(
    ["", "{", "[1]", "null", '"x"', "NaN", '{"a": NaN}', '{"a": "\\ud800"}', "9" * 5000, "[" * 9999]
)
MESSAGES = st.one_of(
    st.builds(calling, ARGUMENTS | st.dictionaries(st.text(max_size=3), st.integers()), st.none()),
    st.builds(calling, ARGUMENTS, st.text(max_size=5)),
    st.builds(lambda content: {"role": "assistant", "content": content}, st.none() | st.text()),
)


@pytest.mark.parametrize("name", TEMPLATES)
@given(message=MESSAGES)
@settings(max_examples=60)
def test_whatever_a_model_has_said_can_be_rendered_and_tokenized(name, message):
    before = copy.deepcopy(message)
    render(name, USER, message, RESULT).encode()
    assert message == before


@given(st.recursive(st.integers() | st.text(), lambda x: st.dictionaries(st.text(), x)))
def test_an_object_of_arguments_is_read_as_json(value):
    text = json.dumps(value)
    assert parse_arguments(text) == (value if isinstance(value, dict) else text)


def test_arguments_that_are_nested_too_deep_stay_a_text():
    deep = '{"a":' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1)
    assert parse_arguments(deep) == deep
