import json

import pytest
from hypothesis import given

from minimal_vllm.server.messages.answer_blocks import BlockWriter, parse_input
from tests.server.message_deltas import deltas

DELTAS = {"thinking_delta": "thinking", "text_delta": "text", "input_json_delta": "partial_json"}


@given(deltas())
def test_the_events_of_each_block_add_up_to_it(message):
    expected, parts = message
    writer = BlockWriter()
    events = [event for part in parts for event in writer.write(part)]
    events += writer.finish()

    streamed, num_stopped = [], 0
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(streamed) == num_stopped  # one after the other
            streamed.append("")
        elif event["type"] == "content_block_stop":
            num_stopped += 1
        elif event["delta"]["type"] in DELTAS:
            streamed[event["index"]] += event["delta"][DELTAS[event["delta"]["type"]]]
    assert num_stopped == len(streamed)

    assert streamed == [text for _, text in expected]
    names = {"thinking": "reasoning", "text": "content"}
    for block, (kind, text) in zip(writer.content, expected, strict=True):
        assert block.get("name", names.get(block["type"])) == kind
        if kind in names.values():
            assert block[block["type"]] == text


@pytest.mark.parametrize("whole", [{"a": 1}, {"a": {"b": ["c", "d"]}}, {}])
def test_the_input_of_a_call_that_is_cut_off_is_an_object(whole):
    text = json.dumps(whole)
    assert parse_input(text) == whole
    for end in range(len(text)):
        assert isinstance(parse_input(text[:end]), dict)


@pytest.mark.parametrize("text", ["[1]", "null", "no JSON", '{"a": NaN, "b" 1'])
def test_an_input_that_is_no_object_is_an_empty_one(text):
    assert parse_input(text) == {}
