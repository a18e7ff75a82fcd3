"""Parts of one message, in an order in which the chat path's readers find them."""

from hypothesis import strategies as st

from minimal_vllm.server.message import MessageDelta, ToolCallDelta

TEXTS = st.lists(st.text(max_size=4), max_size=4)


@st.composite
def deltas(draw):
    """``(reasoning, content, {name: arguments}, parts)``: a message, and the same in parts."""
    reasoning, content = draw(TEXTS), draw(TEXTS)
    calls = draw(st.lists(TEXTS, max_size=3))
    parts = [MessageDelta(reasoning=text) for text in reasoning]
    parts += [MessageDelta(content=text) for text in content]
    for index, pieces in enumerate(calls):
        name = f"f{index}"
        parts.append(MessageDelta(calls={index: ToolCallDelta(f"id{index}", name)}))
        parts += [MessageDelta(calls={index: ToolCallDelta(arguments=text)}) for text in pieces]
    arguments = {f"f{index}": "".join(pieces) for index, pieces in enumerate(calls)}
    return "".join(reasoning), "".join(content), arguments, parts
