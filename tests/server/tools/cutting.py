"""Reads texts in pieces, and puts the parts together as a client does."""

import itertools

from hypothesis import strategies as st

from minimal_vllm.server.message import CallWriter, MessageDelta, TextDelta


def read(make_reader, pieces):
    """``(reasoning, content, [(name, arguments), …])`` of a message that comes in pieces."""
    pieces = list(pieces)
    parts = _parts(make_reader(), pieces)
    assert parts == _parts(make_reader(), ["".join(pieces)])  # the same, and in the same order
    texts = {kind: "".join(text for each, text in parts if each == kind) for kind in KINDS}
    return *texts.values(), [(kind, text) for kind, text in parts if kind not in KINDS]


KINDS = ("reasoning", "content")


def _parts(reader, pieces):
    """The message's parts in their order: the kind, or the name of a call, and the text of each."""
    parts, calls = [], set()
    for delta in [*read_apart(reader, pieces), _last(reader)]:
        for part in delta.parts:
            if isinstance(part, TextDelta):
                kind, text, is_new = part.kind, part.text, not parts or parts[-1][0] != part.kind
                assert text
            else:
                is_new = part.index not in calls
                assert is_new == bool(part.id) == bool(part.name)  # each begins once
                assert part.index == len(calls) - (not is_new)  # one after the other
                calls.add(part.index)
                kind, text = part.name or parts[-1][0], part.arguments
            if is_new:
                parts.append((kind, text))
            else:
                assert parts[-1][0] == kind
                parts[-1] = (kind, parts[-1][1] + text)
    return parts


def _last(reader):
    delta = MessageDelta()
    reader.finish(delta)
    return delta


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
