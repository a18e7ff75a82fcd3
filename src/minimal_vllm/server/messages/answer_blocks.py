"""Blocks of the answer, and the events in which they are streamed.

A ``BlockWriter`` reads the parts of a message as the chat path finds them. It writes blocks in the
order of the model's text: one for each text, one for each call. Each has the events
``content_block_start``, one ``content_block_delta`` for each piece, and ``content_block_stop``.
"""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic_core import from_json

from minimal_vllm.server.message import MessageDelta, TextDelta, ToolCallDelta

Event = dict[str, Any]

BlockType = Literal["thinking", "text", "tool_use"]

SIGNATURE = "unsigned"
"""Signature of reasoning. Clients treat an empty one as missing; this server never reads it."""


class AnswerBlock:
    """A block that is being written.

    Args:
        index: index of the block in the answer's ``content``.
        kind: type of the block.
        call: beginning of the call, if the block is one.
    """

    def __init__(self, index: int, kind: BlockType, call: ToolCallDelta | None = None) -> None:
        self.kind = kind
        self._index = index
        self._call = call or ToolCallDelta(index)
        self._pieces: list[str] = []

    def describe(self) -> dict[str, Any]:
        """Return the block as it is in the answer."""
        text = "".join(self._pieces)
        match self.kind:
            case "thinking":
                return {"type": "thinking", "thinking": text, "signature": SIGNATURE}
            case "text":
                return {"type": "text", "text": text}
        call = self._call
        return {"type": "tool_use", "id": call.id, "name": call.name, "input": parse_input(text)}

    def open(self) -> Event:
        """Return the event of the block's beginning."""
        block = self.describe()
        if self.kind == "thinking":
            block["signature"] = ""
        return {"type": "content_block_start", "index": self._index, "content_block": block}

    def add(self, text: str) -> Event:
        """Return the event of new text."""
        self._pieces.append(text)
        match self.kind:
            case "thinking":
                return self._delta({"type": "thinking_delta", "thinking": text})
            case "text":
                return self._delta({"type": "text_delta", "text": text})
        return self._delta({"type": "input_json_delta", "partial_json": text})

    def close(self) -> Iterator[Event]:
        """Yield the events of the block's end."""
        if self.kind == "thinking":
            yield self._delta({"type": "signature_delta", "signature": SIGNATURE})
        yield {"type": "content_block_stop", "index": self._index}

    def _delta(self, delta: dict[str, str]) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def parse_input(text: str) -> dict[str, Any]:
    """Return the input of a call, as far as the model has written it.

    Args:
        text: JSON, which may be cut off or malformed.
    """
    try:
        value = from_json(text, allow_partial="trailing-strings")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


class BlockWriter:
    """Writes the blocks of one answer, one after the other."""

    def __init__(self) -> None:
        self._blocks: list[AnswerBlock] = []
        self._open: AnswerBlock | None = None

    @property
    def content(self) -> list[dict[str, Any]]:
        """All blocks so far."""
        return [block.describe() for block in self._blocks]

    @property
    def has_calls(self) -> bool:
        """Whether any block is a call."""
        return any(block.kind == "tool_use" for block in self._blocks)

    def write(self, delta: MessageDelta) -> Iterator[Event]:
        """Yield the events for the new part of the message."""
        for part in delta.parts:
            match part:
                case TextDelta(kind="reasoning"):
                    yield from self._write_text("thinking", part.text)
                case TextDelta():
                    yield from self._write_text("text", part.text)
                case ToolCallDelta():
                    yield from self._write_call(part)

    def finish(self) -> Iterator[Event]:
        """Yield the events that end the last block."""
        if self._open:
            yield from self._open.close()
        self._open = None

    def _write_text(self, kind: BlockType, text: str) -> Iterator[Event]:
        if self._open is None or self._open.kind != kind:
            yield from self._begin(kind)
        if self._open:
            yield self._open.add(text)

    def _write_call(self, call: ToolCallDelta) -> Iterator[Event]:
        if call.id:
            yield from self._begin("tool_use", call)
        if call.arguments and self._open:
            yield self._open.add(call.arguments)

    def _begin(self, kind: BlockType, call: ToolCallDelta | None = None) -> Iterator[Event]:
        yield from self.finish()
        self._open = AnswerBlock(len(self._blocks), kind, call)
        self._blocks.append(self._open)
        yield self._open.open()
