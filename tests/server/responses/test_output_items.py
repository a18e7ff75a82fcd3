from hypothesis import given

from minimal_vllm.server.message import MessageDelta
from minimal_vllm.server.responses.functions import FunctionPath
from minimal_vllm.server.responses.output_items import OutputWriter
from tests.server.message_deltas import deltas


@given(deltas())
def test_the_events_of_each_item_add_up_to_it(message):
    reasoning, content, arguments, parts = message
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

    texts = {"reasoning": reasoning, "message": content}
    for item, text in zip(done, streamed.values(), strict=True):
        assert item["status"] == "completed"
        if item["type"] == "function_call":
            assert item["arguments"] == text == arguments.pop(item["name"])
        else:
            assert item["content"][0]["text"] == text == texts.pop(item["type"])
    assert arguments == {}
    assert not any(texts.values())


def test_only_the_item_that_was_cut_off_is_incomplete():
    writer = OutputWriter([])
    for part in (MessageDelta(reasoning="Hm."), MessageDelta(content="Ye")):
        list(writer.write(part))
    list(writer.finish("incomplete"))
    assert [item["status"] for item in writer.output] == ["completed", "incomplete"]
