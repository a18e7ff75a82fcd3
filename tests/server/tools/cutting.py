"""Reads texts in pieces, and puts the parts together as a client does."""

import itertools

from hypothesis import strategies as st

from minimal_vllm.server.message import CallWriter, MessageDelta


def read(make_reader, pieces):
    """``(reasoning, content, [(name, arguments), …])`` of a message that comes in pieces."""
    reader = make_reader()
    whole, calls = MessageDelta(), {}
    for piece in [*pieces, None]:
        part = MessageDelta()
        if piece is None:
            reader.finish(part)
        else:
            reader.read(piece, part)
        whole.reasoning += part.reasoning
        whole.content += part.content
        for place, call in part.calls.items():
            assert (place in calls) == (not call.id) == (not call.name)  # each begins once
            name, arguments = calls.get(place, (call.name, ""))
            calls[place] = (name, arguments + call.arguments)
    assert list(calls) == list(range(len(calls)))
    return whole.reasoning, whole.content, list(calls.values())


def read_format(tool_format, pieces, parallel=True):
    """The same without the reasoning, of a format of tool calls."""
    return read(lambda: tool_format.make_reader(CallWriter(parallel)), pieces)[1:]


def read_apart(reader, pieces):
    """What each piece of a text adds to the message."""
    parts = []
    for piece in pieces:
        parts.append(MessageDelta())
        reader.read(piece, parts[-1])
    return parts


@st.composite
def cut(draw, texts):
    """A text, and it in pieces."""
    text = draw(texts)
    places = draw(st.lists(st.integers(0, len(text)), max_size=12))
    bounds = [0, *sorted(places), len(text)]
    return text, [text[a:b] for a, b in itertools.pairwise(bounds)]


def soup(*fragments):
    """Texts in which these fragments, and pieces of them, stand in any order."""
    pieces = st.sampled_from(fragments).flatmap(
        lambda text: st.integers(1, len(text)).map(lambda end: text[:end])
    )
    return st.lists(st.sampled_from(fragments) | pieces | st.text(max_size=3), max_size=8).map(
        "".join
    )
