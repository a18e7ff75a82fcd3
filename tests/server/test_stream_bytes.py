"""The bytes of a chunk are put together from parts; they have to be those of the whole."""

import json

from hypothesis import given
from hypothesis import strategies as st

from minimal_vllm.server.chat.answer import ChatAnswer
from minimal_vllm.server.completions import CompletionAnswer
from minimal_vllm.server.generation import event

CHOICE = st.fixed_dictionaries(
    {"index": st.integers(0, 127), "text": st.text(), "finish_reason": st.none() | st.text()},
    optional={
        "logprobs": st.none() | st.dictionaries(st.text(), st.floats(-100, 0)),
        "token_ids": st.lists(st.integers(0, 2**20)),
        "delta": st.dictionaries(st.text(), st.text()),
    },
)
FIELDS = st.fixed_dictionaries(
    {"choices": st.lists(CHOICE, max_size=2)},
    optional={"usage": st.none() | st.dictionaries(st.text(), st.integers(0, 2**40))},
)


@given(response_id=st.text(), model=st.text(), several=st.lists(FIELDS, min_size=1, max_size=3))
def test_a_chunk_has_the_bytes_of_its_plain_serialization(response_id, model, several):
    for kind in (CompletionAnswer, ChatAnswer):
        answer = kind.__new__(kind)
        answer.envelope = {"id": response_id, "created": 5, "model": model}
        for fields in several:
            whole = {**answer.envelope, "object": kind.chunk_object, **fields}
            assert answer._event(fields) == event(whole)
            assert json.loads(answer._event(fields).removeprefix(b"data: ")) == whole
