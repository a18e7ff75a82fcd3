"""What was asked for is what comes out: by whatever model, in whatever company."""

import json
import re

import jsonschema
import pytest
from checkpoints import FAMILIES, write_checkpoint

from minimal_vllm import LLM, SamplingParams, StructuredOutputsParams
from minimal_vllm.demo import DEMO_MODEL_DIR
from minimal_vllm.outputs import OutputKind

SCHEMAS = {
    "nested objects": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 12},
            "address": {
                "type": "object",
                "properties": {
                    "street": {"type": "string", "maxLength": 8},
                    "number": {"type": "integer", "minimum": 1, "maximum": 999},
                },
                "required": ["street", "number"],
                "additionalProperties": False,
            },
        },
        "required": ["name", "address"],
        "additionalProperties": False,
    },
    "arrays": {
        "type": "array",
        "items": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
        "minItems": 1,
        "maxItems": 3,
    },
    "enums and constants": {
        "type": "object",
        "properties": {
            "color": {"enum": ["red", "grün", 3, None, {"deep": [1]}]},
            "version": {"const": 'a "quoted" <|endoftext|> {brace'},
        },
        "required": ["color", "version"],
        "additionalProperties": False,
    },
    "numbers": {
        "type": "object",
        "properties": {
            "int": {"type": "integer", "minimum": -20, "exclusiveMaximum": 1000},
            "float": {"type": "number", "minimum": 0.25, "maximum": 0.75},
            "even": {"type": "integer", "multipleOf": 2, "minimum": 0, "maximum": 64},
        },
        "required": ["int", "float", "even"],
        "additionalProperties": False,
    },
    "optional fields": {
        "type": "object",
        "properties": {key: {"type": "integer", "maximum": 9, "minimum": 0} for key in "abcd"},
        "required": ["c"],
        "additionalProperties": False,
    },
    "patterns and formats": {
        "type": "object",
        "properties": {
            "plate": {"type": "string", "pattern": "^[A-Z]{1,3}-[0-9]{2,4}$"},
            "host": {"type": "string", "format": "ipv4"},
        },
        "required": ["plate", "host"],
        "additionalProperties": False,
    },
    "anyOf": {
        "anyOf": [
            {"type": "string", "maxLength": 5},
            {"type": "array", "items": {"type": "null"}, "maxItems": 2},
            {"type": "object", "properties": {"k": {"type": "boolean"}}, "required": ["k"]}
            | {"additionalProperties": False},
        ]
    },
    "$ref": {
        "$defs": {
            "point": {
                "type": "object",
                "properties": {
                    axis: {"type": "integer", "minimum": 0, "maximum": 9} for axis in "xy"
                },
                "required": ["x", "y"],
                "additionalProperties": False,
            }
        },
        "type": "array",
        "items": {"$ref": "#/$defs/point"},
        "minItems": 1,
        "maxItems": 2,
    },
    "recursion": {
        "$ref": "#/$defs/tree",
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "leaf": {"type": "boolean"},
                    "next": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
                },
                "required": ["leaf"],
                "additionalProperties": False,
            }
        },
    },
    "free keys": {
        "type": "object",
        "patternProperties": {"^[a-z]{1,4}$": {"type": "integer", "minimum": 0, "maximum": 99}},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 3,
    },
}
"""Each with an end in sight, so that every output reaches it."""


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    """A model with random weights."""
    folder = write_checkpoint(tmp_path_factory.mktemp("random"), FAMILIES["llama"])
    return LLM(str(folder), num_gpu_blocks_override=512, device="cpu")


@pytest.fixture(scope="module")
def built_in_model():
    return LLM(num_gpu_blocks_override=512, device="cpu")


@pytest.fixture(params=["random_model", "built_in_model"])
def llm(request):
    return request.getfixturevalue(request.param)


def complete(llm, prompts="Dear", kind=None, n=1, **params):
    """The completions of all prompts, one after the other."""
    wanted = StructuredOutputsParams(**kind) if kind else None
    given = {"seed": 1, "max_tokens": 480, **params, "n": n, "structured_outputs": wanted}
    outputs = llm.generate(prompts, SamplingParams(**given), use_tqdm=False)
    assert not llm.engine.has_unfinished_requests
    llm.engine.scheduler.check()
    return [completion for output in outputs for completion in output.outputs]


@pytest.mark.parametrize("name", SCHEMAS)
def test_all_json_validates(llm, name):
    validator = jsonschema.Draft202012Validator(
        SCHEMAS[name], format_checker=jsonschema.FormatChecker()
    )
    # The built-in model likes white space, which takes time.
    kind = {
        "json": SCHEMAS[name],
        "disable_any_whitespace": llm.config.model == str(DEMO_MODEL_DIR),
    }
    outputs = complete(llm, kind=kind, n=10)
    assert [output.finish_reason for output in outputs] == ["stop"] * 10
    for output in outputs:
        validator.validate(json.loads(output.text))


def test_a_schema_may_be_a_string_and_whitespace_be_left_out(random_model):
    schema = json.dumps(SCHEMAS["optional fields"])
    kind = {"json": schema, "disable_any_whitespace": True}
    for output in complete(random_model, kind=kind, n=5):
        assert output.text == json.dumps(json.loads(output.text), separators=(",", ":"))


def test_any_json_object_is_an_object(random_model):
    outputs = complete(random_model, kind={"json_object": True}, n=10)
    ended = [output.text for output in outputs if output.finish_reason == "stop"]
    assert ended
    assert all(isinstance(json.loads(text), dict) for text in ended)


@pytest.mark.parametrize(
    "regex",
    [r"[0-9]{3}-[a-f]{2,9}", r"(yes|no)[.!?]", r"^\w\d[\w.-]{3}$", r"a/b\.c[^\n]", r"(?s:.){4}"],
)
def test_the_whole_output_matches_the_regex(llm, regex):
    for output in complete(llm, kind={"regex": regex}, n=5):
        assert output.finish_reason == "stop"
        assert re.fullmatch(regex, output.text)


def test_the_output_is_one_of_the_choices(llm):
    choices = ["yes", "yes indeed", "no", 'a "\\" \n', "grün 🙂", "</s>", ""]
    outputs = complete(llm, kind={"choice": choices}, n=30)
    texts = {output.text for output in outputs}
    assert texts <= set(choices)
    assert len(texts) > 1


@pytest.mark.parametrize(
    "grammar",
    [
        'start: expr\nexpr: NUMBER | "(" expr "+" expr ")"\nNUMBER: /[0-9]{1,3}/',
        'root ::= expr\nexpr ::= number | "(" expr "+" expr ")"\nnumber ::= [0-9] [0-9]? [0-9]?',
    ],
    ids=["Lark", "EBNF"],
)
def test_the_output_is_a_sentence_of_the_grammar(llm, grammar):
    for output in complete(llm, kind={"grammar": grammar}, n=5):
        if output.finish_reason == "stop":
            assert re.fullmatch(r"[0-9+()]+", output.text)
            assert eval(re.sub(r"\b0+(?=[0-9])", "", output.text)) >= 0


# ---- the end ------------------------------------------------------------------------------------


def test_a_complete_output_ends_without_an_eos_token(random_model):
    (output,) = complete(random_model, kind={"regex": "[0-9]{4}"}, ignore_eos=True)
    assert (output.finish_reason, output.stop_reason) == ("stop", None)
    assert re.fullmatch("[0-9]{4}", output.text)
    assert len(output.token_ids) == 4  # no token but those of the text


def test_a_complete_output_ends_before_min_tokens(random_model):
    (output,) = complete(random_model, kind={"regex": "[0-9]{4}"}, min_tokens=50)
    assert (output.finish_reason, len(output.token_ids)) == ("stop", 4)


def test_an_output_that_may_end_goes_on_until_min_tokens(random_model):
    # EOS is what the model wants most.
    bias = {256: 100.0}
    kind = {"regex": "[0-9]+"}
    (output,) = complete(random_model, kind=kind, logit_bias=bias)
    assert (output.finish_reason, len(output.text)) == ("stop", 1)
    (output,) = complete(random_model, kind=kind, logit_bias=bias, min_tokens=9)
    assert (output.finish_reason, len(output.text)) == ("stop", 8 + 1)


def test_eos_is_not_sampled_where_the_grammar_can_not_end(random_model):
    (output,) = complete(random_model, kind={"regex": "a[0-9]{4}"}, logit_bias={256: 100.0})
    assert re.fullmatch("a[0-9]{4}", output.text)


def test_what_ignores_eos_never_samples_it(random_model):
    params = {"logit_bias": {256: 100.0}, "ignore_eos": True, "max_tokens": 20}
    (output,) = complete(random_model, kind={"regex": "[0-9]+"}, **params)
    assert (output.finish_reason, len(output.text)) == ("length", 20)


def test_a_stop_token_of_the_request_ends_it_where_the_grammar_may_end(random_model):
    params = {"logit_bias": {258: 100.0}, "stop_token_ids": [258]}
    (output,) = complete(random_model, kind={"regex": "[a-z]{3,}"}, **params)
    assert (output.finish_reason, output.stop_reason) == ("stop", 258)
    assert re.fullmatch("[a-z]{3,}", output.text)


def test_an_output_that_is_cut_off_says_so(random_model):
    (output,) = complete(random_model, kind={"regex": "[0-9]{9}"}, max_tokens=8)
    assert (output.finish_reason, len(output.text)) == ("length", 8)
    (output,) = complete(random_model, kind={"regex": "[0-9]{9}"}, max_tokens=9)
    assert (output.finish_reason, len(output.text)) == ("stop", 9)


# ---- in company ---------------------------------------------------------------------------------

NAME = {"json": SCHEMAS["nested objects"]}


def test_a_seed_gives_the_same_output_alone_and_in_a_crowd(random_model):
    alone = [
        complete(random_model, kind=NAME, seed=5)[0].token_ids,
        complete(random_model, seed=6, max_tokens=60)[0].token_ids,
    ]
    params = [
        SamplingParams(
            seed=seed,
            max_tokens=max_tokens,
            structured_outputs=StructuredOutputsParams(**kind) if kind else None,
        )
        for seed, max_tokens, kind in (
            (5, 480, NAME),
            (6, 60, None),
            (7, 60, {"regex": "[0-9]+"}),
            (8, 60, None),
        )
    ]
    crowd = random_model.generate(["Dear"] * 4, params, use_tqdm=False)
    assert [output.outputs[0].token_ids for output in crowd[:2]] == alone


def test_each_of_n_completions_has_a_state_of_its_own(random_model):
    together = [output.text for output in complete(random_model, kind=NAME, n=4, seed=5)]
    alone = [complete(random_model, kind=NAME, seed=5 + i)[0].text for i in range(4)]
    assert together == alone
    assert len(set(together)) == 4


def test_a_preemption_changes_nothing(tmp_path):
    folder = write_checkpoint(tmp_path, FAMILIES["llama"])
    records = []
    small = {"num_gpu_blocks_override": 8, "max_model_len": 128, "device": "cpu"}
    crowded = LLM(str(folder), observers=[records.append], **small)
    outputs = complete(crowded, ["Dear"] * 6, kind=NAME, max_tokens=100)
    assert sum(len(record.preempted) for record in records) > 0
    (alone,) = complete(crowded, ["Dear"], kind=NAME, max_tokens=100)
    assert {output.text for output in outputs} == {alone.text}


def test_the_text_of_a_stream_is_that_of_the_whole(random_model):
    (whole,) = complete(random_model, kind=NAME, seed=9)
    params = SamplingParams(
        seed=9, max_tokens=480, structured_outputs=StructuredOutputsParams(**NAME)
    )
    tokens = random_model.tokenizer.encode("Dear")
    random_model.engine.add_request("stream", tokens, params, output_kind=OutputKind.DELTA)
    text = ""
    while random_model.engine.has_unfinished_requests:
        for output in random_model.engine.step():
            text += "".join(completion.text for completion in output.outputs)
    assert text == whole.text


def test_a_request_whose_grammar_and_bans_leave_no_token_fails_alone(random_model):
    (good,) = complete(random_model, seed=6, max_tokens=30)
    forbidden = SamplingParams(
        structured_outputs=StructuredOutputsParams(regex="[0-9]{4}"), allowed_token_ids=[65]
    )
    params = [forbidden, SamplingParams(seed=6, max_tokens=30)]
    bad, same = random_model.generate(["Dear"] * 2, params, use_tqdm=False)
    assert bad.outputs[0].finish_reason == "error"
    assert same.outputs[0].token_ids == good.token_ids


def test_a_grammar_that_becomes_too_ambiguous_ends_its_request_and_says_why(random_model):
    properties = {f"p{i}": {"type": "string"} for i in range(2000)}
    (output,) = complete(random_model, kind={"json": {"type": "object", "properties": properties}})
    assert output.finish_reason == "error"
    assert "items; max is" in output.stop_reason


def test_without_a_tokenizer_structured_output_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path, FAMILIES["llama"])
    llm = LLM(str(folder), skip_tokenizer_init=True, num_gpu_blocks_override=32, device="cpu")
    params = SamplingParams(structured_outputs=StructuredOutputsParams(regex="a"))
    with pytest.raises(ValueError, match="structured outputs need a tokenizer"):
        llm.generate([[1, 2]], params, use_tqdm=False)
