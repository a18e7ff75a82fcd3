"""Items of the answer, and the events in which they are streamed.

An ``OutputWriter`` reads the parts of a message as the chat path finds them. It writes items in
the order of the model's text: one for each text, one for each call. The events of an item are
``output_item.added``, others for its content, and ``output_item.done``.
"""

import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

from minimal_vllm.server.message import MessageDelta, TextDelta, ToolCallDelta
from minimal_vllm.server.responses.functions import FunctionPath
from minimal_vllm.server.responses.opaque_reasoning import encode_reasoning

Event = dict[str, Any]
"""An event without its ``sequence_number``."""

Status = Literal["in_progress", "completed", "incomplete"]


class OutputItem(ABC):
    """An item that is being written.

    Args:
        index: index of the item in the answer's ``output``.
    """

    prefix: ClassVar[str]
    """Beginning of the item's id."""

    def __init__(self, index: int) -> None:
        self.id = f"{self.prefix}_{uuid.uuid4().hex}"
        self.index = index
        self._pieces: list[str] = []
        self._status: Status = "in_progress"

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self._pieces)

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the item as it is in the answer."""

    def open(self) -> Iterator[Event]:
        """Yield the events of the item's beginning."""
        yield self._event("response.output_item.added", item=self.describe())

    def add(self, text: str) -> Iterator[Event]:
        """Yield the event of new text."""
        self._pieces.append(text)
        yield self._delta(text)

    def close(self, status: Status) -> Iterator[Event]:
        """Yield the events of the item's end."""
        yield from self._close_content()
        self._status = status
        yield self._event("response.output_item.done", item=self.describe())

    @abstractmethod
    def _delta(self, text: str) -> Event:
        """Return the event of new text."""

    @abstractmethod
    def _close_content(self) -> Iterator[Event]:
        """Yield the events that end the item's content."""

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "output_index": self.index, **fields}


class TextItem(OutputItem):
    """An item whose content is one part, of text."""

    part_type: ClassVar[str]
    part_fields: ClassVar[dict[str, Any]]
    """Other fields of the part; empty in answers of this server."""
    delta_fields: ClassVar[dict[str, Any]]
    """Other fields of the text's events; likewise empty."""

    def open(self) -> Iterator[Event]:
        """Yield the events of the item's beginning."""
        yield from super().open()
        yield self._content_event("response.content_part.added", part=self._part)

    def _delta(self, text: str) -> Event:
        kind = f"response.{self.part_type}.delta"
        return self._content_event(kind, delta=text, **self.delta_fields)

    def _close_content(self) -> Iterator[Event]:
        kind = f"response.{self.part_type}.done"
        yield self._content_event(kind, text=self.text, **self.delta_fields)
        yield self._content_event("response.content_part.done", part=self._part)

    @property
    def _part(self) -> dict[str, Any]:
        return {"type": self.part_type, "text": self.text, **self.part_fields}

    @property
    def _content(self) -> list[dict[str, Any]]:
        return [] if self._status == "in_progress" else [self._part]

    def _content_event(self, kind: str, **fields: Any) -> Event:
        return self._event(kind, item_id=self.id, content_index=0, **fields)


class MessageItem(TextItem):
    """The text of the answer."""

    prefix = "msg"
    part_type = "output_text"
    part_fields: ClassVar[dict[str, Any]] = {"annotations": [], "logprobs": []}
    delta_fields: ClassVar[dict[str, Any]] = {"logprobs": []}

    def describe(self) -> dict[str, Any]:
        """Return the item as it is in the answer."""
        return {
            "type": "message",
            "id": self.id,
            "role": "assistant",
            "status": self._status,
            "content": self._content,
        }


class ReasoningOutput(TextItem):
    """The reasoning before the answer."""

    prefix = "rs"
    part_type = "reasoning_text"
    part_fields: ClassVar[dict[str, Any]] = {}
    delta_fields: ClassVar[dict[str, Any]] = {}

    def describe(self) -> dict[str, Any]:
        """Return the item as it is in the answer."""
        return {
            "type": "reasoning",
            "id": self.id,
            "status": self._status,
            "summary": [],
            "content": self._content,
        }


class ReasoningToSendBack(ReasoningOutput):
    """The reasoning, also as ``encrypted_content``."""

    def describe(self) -> dict[str, Any]:
        """Return the item as it is in the answer."""
        item = super().describe()
        return item | ({"encrypted_content": encode_reasoning(self.text)} if self._content else {})


class CallItem(OutputItem):
    """A call of a function."""

    prefix = "fc"

    def __init__(self, index: int, call_id: str, function: FunctionPath) -> None:
        super().__init__(index)
        self._call_id = call_id
        self._function = function

    def describe(self) -> dict[str, Any]:
        """Return the item as it is in the answer."""
        item = {
            "type": "function_call",
            "id": self.id,
            "call_id": self._call_id,
            "name": self._function.name,
            "arguments": self.text,
            "status": self._status,
        }
        return item | ({"namespace": self._function.namespace} if self._function.namespace else {})

    def _delta(self, text: str) -> Event:
        return self._event("response.function_call_arguments.delta", item_id=self.id, delta=text)

    def _close_content(self) -> Iterator[Event]:
        yield self._event(
            "response.function_call_arguments.done",
            item_id=self.id,
            name=self._function.name,
            arguments=self.text,
        )


class OutputWriter:
    """Writes the items of one answer, one after the other.

    Args:
        functions: the functions that the request declares.
        reasoning: type of the items of the reasoning.
    """

    def __init__(
        self,
        functions: Iterable[FunctionPath],
        reasoning: type[ReasoningOutput] = ReasoningOutput,
    ) -> None:
        self._reasoning = reasoning
        self._functions = {function.full_name: function for function in functions}
        self._items: list[OutputItem] = []
        self._open: OutputItem | None = None

    @property
    def output(self) -> list[dict[str, Any]]:
        """All items so far."""
        return [item.describe() for item in self._items]

    def write(self, delta: MessageDelta) -> Iterator[Event]:
        """Yield the events for the new part of the message."""
        for part in delta.parts:
            match part:
                case TextDelta(kind="reasoning"):
                    yield from self._write_text(self._reasoning, part.text)
                case TextDelta():
                    yield from self._write_text(MessageItem, part.text)
                case ToolCallDelta():
                    yield from self._write_call(part)

    def finish(self, status: Status) -> Iterator[Event]:
        """Yield the events that end the answer's last item; an answer has at least one."""
        if not self._items:
            yield from self._begin(MessageItem(0))
        yield from self._end(status)

    def _write_text(self, kind: type[TextItem], text: str) -> Iterator[Event]:
        if not isinstance(self._open, kind):
            yield from self._begin(kind(len(self._items)))
        if self._open is not None:
            yield from self._open.add(text)

    def _write_call(self, call: ToolCallDelta) -> Iterator[Event]:
        if call.id:
            function = self._functions.get(call.name, FunctionPath(call.name))
            yield from self._begin(CallItem(len(self._items), call.id, function))
        if call.arguments and self._open is not None:
            yield from self._open.add(call.arguments)

    def _begin(self, item: OutputItem) -> Iterator[Event]:
        yield from self._end("completed")
        self._items.append(item)
        self._open = item
        yield from item.open()

    def _end(self, status: Status) -> Iterator[Event]:
        if self._open is not None:
            yield from self._open.close(status)
        self._open = None
