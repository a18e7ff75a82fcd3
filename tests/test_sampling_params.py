import pytest

from minimal_vllm.sampling_params import SamplingParams, StructuredOutputsParams


def test_defaults_are_vllms():
    params = SamplingParams()
    assert (params.n, params.temperature, params.top_p, params.top_k) == (1, 1.0, 1.0, 0)
    assert (params.max_tokens, params.min_tokens, params.min_p) == (16, 0, 0.0)
    assert (params.detokenize, params.skip_special_tokens) == (True, True)
    assert (params.logprobs, params.prompt_logprobs, params.seed) == (None, None, None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e-300),  # zero, as a float32
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", 1.1),
        ("seed", "x"),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop_token_ids", [-1]),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("logprobs", -2),
        ("prompt_logprobs", -2),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: float("nan")}),
        ("allowed_token_ids", []),
        ("allowed_token_ids", [-1]),
        ("bad_words", [" "]),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_fields_name(field, value):
    with pytest.raises(ValueError, match=field):
        SamplingParams(**{field: value})


def test_an_unknown_field_is_refused():
    with pytest.raises(ValueError, match="best_of"):
        SamplingParams(best_of=2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens .5. must not exceed max_tokens .4."),
        ({"n": 2, "temperature": 0}, "n must be 1 with greedy sampling"),
        ({"stop": "x", "detokenize": False}, "need detokenize=True"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**fields)


def test_min_tokens_needs_no_bound_without_max_tokens():
    assert SamplingParams(min_tokens=5, max_tokens=None).min_tokens == 5


@pytest.mark.parametrize(("temperature", "greedy"), [(0, True), (9e-6, True), (1e-5, False)])
def test_a_temperature_near_zero_is_greedy(temperature, greedy):
    assert SamplingParams(temperature=temperature).greedy is greedy


def test_stop_strings_are_a_tuple_whatever_was_given():
    for given, expected in ((None, ()), ("a", ("a",)), (["a", "b"], ("a", "b"))):
        assert SamplingParams(stop=given).stop_strings == expected


def test_an_assignment_is_checked_like_an_argument():
    params = SamplingParams()
    params.max_tokens = 100
    with pytest.raises(ValueError, match="top_p"):
        params.top_p = 5.0
    assert (params.max_tokens, params.top_p) == (100, 1.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one of .*, not none"),
        ({"json_object": False}, "exactly one of .*, not none"),
        ({"regex": "a", "choice": ["a"]}, "exactly one of .*, not regex and choice"),
        ({"choice": []}, "choice"),
        ({"json": 5}, "json"),
        ({"structural_tag": "a"}, "structural_tag"),
    ],
)
def test_a_structured_output_is_of_one_kind(given, message):
    with pytest.raises(ValueError, match=message):
        StructuredOutputsParams(**given)


def test_the_kind_of_a_structured_output_is_known_by_its_field():
    assert StructuredOutputsParams(regex="", json_object=False).kind == "regex"
    assert SamplingParams(structured_outputs={"json_object": True}).structured_outputs.kind == (
        "json_object"
    )
