import importlib.util
import re
from random import Random

import numpy as np
import pytest
from checkpoints import write_tokenizer

from minimal_vllm.sampling import grammar, grammar_check
from minimal_vllm.sampling.grammar import GrammarCompiler
from minimal_vllm.sampling.grammar_source import MAX_WHITESPACE
from minimal_vllm.sampling_params import StructuredOutputsParams
from minimal_vllm.text.tokenizer import Tokenizer
from tests.sampling.rows import row
from tests.text.tiny_tokenizers import FORMATS

VOCAB_SIZE = 450
"""More than any of the tokenizers has."""


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return GrammarCompiler(Tokenizer(folder), VOCAB_SIZE, [256])


@pytest.fixture(scope="module", params=FORMATS)
def any_tokenizer(request, tmp_path_factory):
    return Tokenizer(FORMATS[request.param](tmp_path_factory.mktemp(request.param)))


def start(compiler, **wanted):
    return compiler.start(StructuredOutputsParams(**wanted))


def allowed(state, prompt=(1, 2), output=(), stop=()):
    mask = np.frombuffer(state.allowed_tokens(row(prompt, output, stop=stop)), np.uint8)
    return set(np.flatnonzero(np.unpackbits(mask, bitorder="little")[:VOCAB_SIZE]).tolist())


def test_the_allowed_tokens_are_all_with_which_a_match_may_go_on(any_tokenizer):
    compiler = GrammarCompiler(any_tokenizer, VOCAB_SIZE, [])
    beginnings = {"It was a dark"[:end].encode() for end in range(1, 14)}
    expected = {
        token_id
        for token_id in range(VOCAB_SIZE)
        if any_tokenizer.token_bytes(token_id) in beginnings
    }
    assert allowed(start(compiler, regex="It was a dark")) == expected


@pytest.mark.parametrize(
    "text", ['{"naïve café":1}', " 你好 🙂\n", "<think> </s> <|im_end|> <s>", "\x00\x7f"]
)
def test_every_text_can_be_written_whatever_the_tokenizer(any_tokenizer, text):
    state = start(GrammarCompiler(any_tokenizer, VOCAB_SIZE, []), choice=[text])
    random, output = Random(0), []
    while not state.is_complete(row((1,), output)):
        output.append(random.choice(sorted(allowed(state, (1,), output))))
    assert b"".join(map(any_tokenizer.token_bytes, output)) == text.encode()
    assert any_tokenizer.special_token_ids.isdisjoint(output)


def test_the_state_is_a_function_of_the_output(compiler):
    followed = start(compiler, regex="(ab|ac)*d")
    output = []
    for token_id in (66, 67, 66, 68):  # a b a c
        output.append(token_id - 2)
        anew = start(compiler, regex="(ab|ac)*d")
        assert allowed(followed, output=output) == allowed(anew, (9, 9, 9), output)


def test_white_space_in_json_has_an_end(compiler):
    state = start(compiler, json_object=True)
    tokenizer = compiler._tokenizer
    (brace,), (space,) = tokenizer.encode("{"), tokenizer.encode(" ")
    for length in range(MAX_WHITESPACE):
        assert space in allowed(state, output=[brace] + [space] * length)
    assert space not in allowed(state, output=[brace] + [space] * MAX_WHITESPACE)


def test_tokens_that_end_the_output_are_allowed_where_the_grammar_may_end(compiler):
    state = start(compiler, regex="a+")
    letter = next(iter(allowed(state)))
    assert allowed(state, stop=[256, 300]) == {letter}
    assert allowed(state, output=[letter], stop=[256, 300]) == {letter, 256, 300}
    assert allowed(state, output=[letter]) == {letter}


def test_a_stop_token_beyond_the_vocabulary_is_no_error(compiler):
    assert allowed(start(compiler, regex="a*"), stop=[10**6])


def test_an_output_is_complete_when_nothing_can_be_added(compiler):
    state = start(compiler, regex="aa?")
    letter = next(iter(allowed(state)))
    assert not state.is_complete(row((1,), [letter]))
    assert state.is_complete(row((1,), [letter, letter]))


def test_after_a_token_that_is_not_allowed_no_other_is(compiler):
    state = start(compiler, regex="a+")
    assert not state.is_complete(row((1,), [5]))
    assert allowed(state, output=[5], stop=[256]) == set()
    assert state.error


# ---- compiling ----------------------------------------------------------------------------------


def test_a_grammar_is_compiled_once_and_few_are_kept(compiler, monkeypatch):
    checked = []
    monkeypatch.setattr(grammar, "check_grammar", lambda source: checked.append(source) or source)
    monkeypatch.setattr(grammar, "MAX_CACHED_GRAMMARS", 2)
    compiler = GrammarCompiler(compiler._tokenizer, VOCAB_SIZE, [])
    for regex, times in (("a", 1), ("a", 1), ("b", 2), ("c", 3), ("b", 3), ("a", 4)):
        start(compiler, regex=regex)
        assert len(checked) == times


def test_outputs_of_one_grammar_are_apart(compiler):
    one, other = start(compiler, regex="abc"), start(compiler, regex="abc")
    first = min(allowed(one))
    one.is_complete(row((1,), [first]))
    assert first in allowed(other)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"json": "{"}, "json can't be used: Expecting property name"),
        ({"json": "[]"}, "json can't be used: a JSON schema is an object"),
        ({"json": {"a": object()}}, "json can't be used: .* not JSON serializable"),
        ({"json": {"maximum": float("nan")}}, "json can't be used: .* not JSON compliant"),
        ({"json": {"type": "strin"}}, "json can't be used: .*Invalid type: strin$"),
        ({"json": {"not": {}}}, r'json can.t be used: .*Unimplemented keys: \["not"\]$'),
        ({"json": {"$ref": "http://a.b/c"}}, "json can't be used: .*failed"),
        ({"json": {"type": "integer", "minimum": 2, "maximum": 1}}, "Unsatisfiable schema"),
        (
            {"json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}},
            "json can't be used: no text matches",
        ),
        ({"regex": "("}, "regex can't be used: .*unclosed group$"),
        ({"regex": "a(?=b)"}, "regex can't be used: .*look-ahead.*not supported$"),
        ({"regex": "\ud800"}, "regex can't be used: .*surrogates"),
        ({"choice": ["\ud800"]}, "choice can't be used: "),
        ({"grammar": "x"}, "grammar can't be used: .*Expected ::="),
        ({"grammar": "start: x"}, 'grammar can\'t be used: unknown name: "x"$'),
        ({"grammar": "start: start"}, "grammar can't be used: no text matches it$"),
        ({"grammar": "start: <|endoftext|>"}, "grammar can't be used: special tokens"),
        ({"grammar": f"root ::= {'(' * 999}"}, "grammar can't be used: .*recursion"),
    ],
)
def test_what_can_not_be_used_is_refused_by_its_name(compiler, wanted, message):
    with pytest.raises(ValueError, match=message) as caught:
        start(compiler, **wanted)
    assert "\n" not in str(caught.value)


def test_a_grammar_that_takes_too_long_is_refused(compiler, monkeypatch):
    monkeypatch.setattr(grammar_check, "MAX_COMPILE_SECONDS", 1)
    patterns = [{"type": "string", "pattern": f"a.*b{i}.*"} for i in range(30)]
    with pytest.raises(ValueError, match=r"json can't be used: .* more than 1 s$"):
        start(compiler, json={"allOf": patterns})


def test_a_conversion_that_takes_too_long_is_refused(compiler, monkeypatch):
    monkeypatch.setattr(grammar_check, "MAX_COMPILE_SECONDS", 1)
    rules = [f'r{i} ::= "x{i}" r{i + 1} | "y{i}"' for i in range(5000)]
    with pytest.raises(ValueError, match=r"grammar can't be used: .* more than 1 s$"):
        start(compiler, grammar="\n".join(["root ::= r0", *rules, 'r5000 ::= "z"']))


def test_a_grammar_that_overflows_the_stack_is_refused(compiler):
    rules = [f'r{i}: r{i + 1} "x" | "y"' for i in range(9000)]
    with pytest.raises(ValueError, match=r"grammar can't be used: .* nested too deep$"):
        start(compiler, grammar="\n".join(["start: r0", *rules, 'r9000: "z"']))


def test_thousands_of_choices_are_no_problem(compiler):
    choices = [f"choice {i}" for i in range(5000)]
    state = start(compiler, choice=choices)
    random, output = Random(0), []
    while not state.is_complete(row((1,), output)) and len(output) < 50:
        tokens = allowed(state, (1,), output)
        if not tokens:
            break
        output.append(random.choice(sorted(tokens)))
    text = b"".join(map(compiler._tokenizer.token_bytes, output)).decode()
    assert re.fullmatch(r"choice [0-9]{1,4}", text)


def test_without_the_library_the_error_says_what_to_install(compiler, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'minimal-vllm\[structured\]'"):
        start(compiler, regex="a")
