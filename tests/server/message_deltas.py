"""Parts of one message, in an order in which the chat path's readers find them."""

from hypothesis import strategies as st

from minimal_vllm.server.message import MessageDelta, TextDelta, ToolCallDelta

TEXTS = st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=4)


@st.composite
def deltas(draw):
    """``([(kind or name, text), …], deltas)``: a message, and the same piece by piece."""
    kinds = ["reasoning"] * draw(st.integers(0, 1))
    kinds += draw(st.lists(st.sampled_from(["content", "call"]), max_size=5))
    kinds = [
        kind
        for kind, before in zip(kinds, [None, *kinds], strict=False)
        if kind != before or kind == "call"
    ]
    message, parts, num_calls = [], [], 0
    for kind in kinds:
        pieces = draw(TEXTS)
        if kind == "call":
            name = f"f{num_calls}"
            parts.append(ToolCallDelta(num_calls, f"id{num_calls}", name))
            parts += [ToolCallDelta(num_calls, arguments=text) for text in pieces]
            num_calls += 1
        else:
            name = kind
            parts += [TextDelta(kind, text) for text in pieces]
        message.append((name, "".join(pieces)))
    return message, [MessageDelta([part]) for part in parts]
