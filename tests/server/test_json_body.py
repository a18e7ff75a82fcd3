"""Whatever a body holds, what is read from it can be written as JSON again."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimal_vllm.server.errors import ApiError
from minimal_vllm.server.json_body import parse_body

JSON = {"content-type": "application/json"}
texts = st.text(st.characters(codec=None), max_size=4)  # unpaired surrogates included
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def as_bytes(value):
    return json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


@given(values, st.booleans())
def test_a_value_is_what_python_reads_or_refused_if_json_can_not_hold_it(value, ensure_ascii):
    body = json.dumps(value, ensure_ascii=ensure_ascii).encode(errors="surrogatepass")
    try:
        as_bytes(value)
    except ValueError:
        with pytest.raises((ApiError, UnicodeDecodeError)):
            parse_body(body)
    else:
        assert parse_body(body) == json.loads(body)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ('{"a": [0, {"b": 1e999}]}', "a.1.b: numbers must be finite"),
        ("-Infinity", "numbers must be finite"),
        (r'{"a": "\uD800"}', "a: a text must not have unpaired surrogates"),
        (r'{"a": {"\udfff": 1}}', "a: a text must not have unpaired surrogates"),
    ],
)
def test_the_complaint_names_the_place(body, complaint):
    with pytest.raises(ApiError) as error:
        parse_body(body.encode())
    assert error.value.detail == complaint


def test_a_byte_order_mark_and_surrogate_pairs_are_read():
    assert parse_body(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}') == {"a": "\N{GRINNING FACE}"}


def test_all_routes_read_their_bodies_so(server):
    paths = server.get("/openapi.json").json()["paths"]
    posts = [path for path in paths if "post" in paths[path]]
    assert len(posts) > 5
    for path in posts:
        response = server.request("POST", path, content='{"metadata": {"a": NaN}}', headers=JSON)
        assert response.status_code == 400
        assert "metadata.a: numbers must be finite" in response.json()["error"]["message"]
