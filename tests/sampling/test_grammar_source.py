import pytest
from llguidance import LLTokenizer

from minimal_vllm.sampling.grammar_check import check_grammar, compile_grammar
from minimal_vllm.sampling.grammar_source import grammar_source, json_rule, with_reasoning
from minimal_vllm.sampling_params import StructuredOutputsParams

BYTES = LLTokenizer("byte")

ANSWERS = {
    "json": ({"json": {"type": "integer", "minimum": 5, "maximum": 5}}, "5"),
    "json_object": ({"json_object": True}, '{"a": 1}'),
    "regex": ({"regex": "[ab]+"}, "abba"),
    "choice": ({"choice": ["yes", "no"]}, "no"),
    "lark": ({"grammar": 'start: x\nx: "{" x "}" | /[0-9]{1,3}/'}, "{{12}}"),
    "ebnf": ({"grammar": 'root ::= "a" root | "b"'}, "aab"),
}


def matches(source, text):
    """Whether a text is one of the grammar's."""
    matcher = compile_grammar(source, BYTES)
    return bool(matcher.consume_tokens(list(text.encode())) and matcher.is_accepting())


def source_of(reasoning, **wanted):
    source = check_grammar(grammar_source(StructuredOutputsParams(**wanted)))
    return with_reasoning(source, reasoning)


@pytest.mark.parametrize("name", ANSWERS)
def test_reasoning_that_has_begun_goes_on_to_its_closing_tag(name):
    wanted, answer = ANSWERS[name]
    source = source_of("begun", **wanted)
    assert matches(source, f"I think\n<think> it's {answer}.\n</think>{answer}")
    assert matches(source, f"</think>{answer}")
    for text in (answer, f"{answer}</think>", f"a</think>!{answer}", f"a</think>b</think>{answer}"):
        assert not matches(source, text)


@pytest.mark.parametrize("name", ANSWERS)
def test_reasoning_that_is_possible_may_be_left_out(name):
    wanted, answer = ANSWERS[name]
    source = source_of("possible", **wanted)
    assert matches(source, answer)
    assert matches(source, f"<think>\nHm.</think>{answer}")
    for text in (f"Hm.</think>{answer}", f"{answer}</think>", f"<think>{answer}"):
        assert not matches(source, text)


def test_without_reasoning_there_is_none():
    source = source_of(None, regex="[ab]+")
    assert matches(source, "ab")
    assert not matches(source, "<think></think>ab")


def test_references_of_two_schemas_are_apart():
    def schema(kind):
        return {"$ref": "#/$defs/x", "$defs": {"x": {"type": kind}}}

    rules = f"start: a b\na: {json_rule(schema('boolean'))}\nb: {json_rule(schema('null'))}"
    assert matches(rules, "truenull")
    assert not matches(rules, "nulltrue")
