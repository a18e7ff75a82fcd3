"""The bytes of a chunk are put together from parts; they have to be those of the whole."""

import json
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from minimal_vllm.outputs import CompletionOutput, RequestOutput
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.server.chat.answer import ChatAnswer
from minimal_vllm.server.chat.dialogue import Dialogue, MessageReaders
from minimal_vllm.server.chunks import event
from minimal_vllm.server.completions import CompletionAnswer
from minimal_vllm.server.generation import UsageCounter
from minimal_vllm.server.models import StreamOptions

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


def streaming(kind, include_usage):
    """An answer to two choices whose streams have begun."""
    answer = kind.__new__(kind)
    answer.envelope = {"id": "a", "created": 5, "model": "m"}
    answer._options = StreamOptions(include_usage=include_usage)
    answer._begun = answer._opened = {0, 1}
    answer._around_texts = {}
    answer._params = SamplingParams()
    answer._body = SimpleNamespace(
        echo=False, return_token_ids=False, prompt_logprobs=None, include_reasoning=True
    )
    dialogue = Dialogue(None, None, parallel=True, reasoning=None, reason_of_calls="tool_calls")
    answer._messages = MessageReaders(dialogue, str)
    return answer


@given(
    include_usage=st.booleans(),
    texts=st.lists(st.tuples(st.integers(0, 1), st.text() | st.just("\0")), max_size=4),
)
def test_a_chunk_of_text_alone_has_the_bytes_of_any_chunk(include_usage, texts):
    for kind in (CompletionAnswer, ChatAnswer):
        quick, plain = streaming(kind, include_usage), streaming(kind, include_usage)
        quick._shows_only_text, plain._shows_only_text = True, False
        for index, text in texts:
            completion = CompletionOutput(index=0, text=text, token_ids=[7])
            output = RequestOutput("a", None, [1], None, [completion], finished=False)
            several = [b"".join(each.events(index, output, USAGE)) for each in (quick, plain)]
            assert several[0] == several[1]
            assert bool(text) == bool(several[0])


USAGE = UsageCounter([], 1)
