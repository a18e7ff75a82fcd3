from hypothesis import given

from minimal_vllm.server.message import MessageDelta, TextDelta
from minimal_vllm.server.responses.functions import FunctionPath
from minimal_vllm.server.responses.output_items import OutputWriter
from tests.server.message_deltas import deltas


@given(deltas())
def test_the_events_of_each_item_add_up_to_it(message):
    expected, parts = message
    writer = OutputWriter([FunctionPath("f0")])
    events = [event for part in parts for event in writer.write(part)]
    events += writer.finish("completed")

    streamed, done = {}, []
    for event in events:
        index = event["output_index"]
        if event["type"].endswith("item.added"):
            assert index == len(streamed) == len(done)  # one after the other
            streamed[index] = ""
        elif event["type"].endswith(".delta"):
            streamed[index] += event["delta"]
        elif event["type"].endswith("item.done"):
            done.append(event["item"])
    assert done == writer.output

    assert [text_of(item) for item in done] == (expected or [("content", "")])
    assert list(streamed.values()) == [text for _, text in expected] or not expected
    assert all(item["status"] == "completed" for item in done)


def text_of(item):
    if item["type"] == "function_call":
        return item["name"], item["arguments"]
    kind = {"message": "content", "reasoning": "reasoning"}[item["type"]]
    return kind, item["content"][0]["text"]


def test_only_the_item_that_was_cut_off_is_incomplete():
    writer = OutputWriter([])
    for part in (TextDelta("reasoning", "Hm."), TextDelta("content", "Ye")):
        list(writer.write(MessageDelta([part])))
    list(writer.finish("incomplete"))
    assert [item["status"] for item in writer.output] == ["completed", "incomplete"]
