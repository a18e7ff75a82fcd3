"""What a schema leaves open is decided so that the output ends, and is valid by the schema."""

import copy

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimal_vllm.sampling.json_schema import find_keyword, prepare_schema, subschemas

OBJECT = {"type": "object", "properties": {"a": {"type": "string"}}}


def is_closed(schema, **options):
    return prepare_schema(schema, **options).get("additionalProperties") is False


def test_unknown_formats_are_annotations_wherever_they_stand():
    schema = {
        "properties": {
            "p": {"type": "string", "format": "path"},
            "format": {"const": {"format": 1}},
        },
        "items": [{"format": "password"}],
        "$defs": {"d": {"anyOf": [{"format": "date"}, {"format": "x"}]}},
    }
    prepared = prepare_schema(schema)
    assert [node["format"] for _, node in subschemas(prepared) if "format" in node] == ["date"]
    assert prepared["properties"]["format"] == {"const": {"format": 1}}


def test_a_schema_can_not_lift_its_own_constraints():
    assert "x-guidance" not in prepare_schema(OBJECT | {"x-guidance": {"lenient": True}})


def test_objects_that_name_their_properties_are_closed_at_every_depth():
    prepared = prepare_schema({"properties": {"b": {"items": OBJECT}}})
    assert prepared["additionalProperties"] is False
    assert prepared["properties"]["b"]["items"]["additionalProperties"] is False


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        OBJECT | {"additionalProperties": True},
        OBJECT | {"unevaluatedProperties": True},
        OBJECT | {"required": ["a", "b"]},
        OBJECT | {"minProperties": 2},
        OBJECT | {"anyOf": [{"required": ["b"]}]},
        {"allOf": [OBJECT, {"properties": {"b": {}}}]},
    ],
)
def test_an_object_stays_open_if_the_schema_may_want_other_keys(schema):
    assert not any(
        node.get("additionalProperties") is False for _, node in subschemas(prepare_schema(schema))
    )


def test_all_objects_can_be_closed_nevertheless():
    assert is_closed(OBJECT | {"required": ["a", "b"]}, close_all=True)


NAMES = st.sampled_from("abc")
SCHEMAS = st.recursive(
    st.fixed_dictionaries({}, optional={"type": st.just("string"), "format": st.text(max_size=3)}),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(NAMES, inner, max_size=2),
            "required": st.lists(NAMES, max_size=2),
            "items": inner,
            "anyOf": st.lists(inner, min_size=1, max_size=2),
            "allOf": st.lists(inner, min_size=1, max_size=2),
            "additionalProperties": st.booleans() | inner,
        },
    ),
    max_leaves=6,
)
VALUES = st.recursive(
    st.text(max_size=2), lambda x: st.dictionaries(NAMES, x, max_size=3) | st.lists(x, max_size=2)
)


@given(SCHEMAS, VALUES)
def test_what_the_prepared_schema_allows_is_valid_by_the_original(schema, value):
    before = copy.deepcopy(schema)
    prepared = jsonschema.Draft202012Validator(prepare_schema(schema))
    assert schema == before
    if prepared.is_valid(value):
        jsonschema.Draft202012Validator(schema).validate(value)


def test_a_keyword_is_found_where_it_stands():
    schema = {"properties": {"a": {"items": {"uniqueItems": True}}}}
    assert find_keyword(schema, "uniqueItems") == "properties.a.items"
    assert find_keyword(schema, "not") is None


@pytest.mark.parametrize("schema", ["[]", "5", 5, [1]])
def test_a_schema_is_an_object(schema):
    with pytest.raises(ValueError, match="a JSON schema is an object"):
        prepare_schema(schema)
