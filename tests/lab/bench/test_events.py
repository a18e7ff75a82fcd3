from hypothesis import given
from hypothesis import strategies as st

from minimal_vllm_lab.bench.events import EventParser

STREAM = (
    ": a comment\n\n"
    'data: {"text": "é 🦙"}\n\n'
    "event: note\nid: 7\ndata: two\ndata:  lines\n\n"
    "data:no space\r\n\r\n"
    "\n\n"
    "data: [DONE]\n\n"
    "data: cut off"
).encode()
EVENTS = ['{"text": "é 🦙"}', "two\n lines", "no space", "[DONE]"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12).map(sorted))
def test_events_are_the_same_wherever_the_bytes_were_cut(cuts):
    parser = EventParser()
    pieces = zip([0, *cuts], [*cuts, len(STREAM)], strict=True)
    events = [event for begin, end in pieces for event in parser.feed(STREAM[begin:end])]
    assert events == EVENTS
