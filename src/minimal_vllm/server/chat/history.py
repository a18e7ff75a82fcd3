"""Messages of a conversation, as a record of what was said.

Whatever an answer of this server or of OpenAI's may hold is accepted when it comes back: keys that
mean nothing to a chat template are dropped. Only content that isn't text is refused.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from minimal_vllm.server.api_model import HistoryModel


class TextPart(HistoryModel):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class RefusalPart(HistoryModel):
    """A part of a message's content in which the assistant declines to answer."""

    type: Literal["refusal"]
    refusal: str


def _kind_of_part(part: Any) -> str:
    if isinstance(part, str):
        return "[string]"
    kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
    return "[refusal]" if kind == "refusal" else "[text]"


Part = Annotated[
    Annotated[str, Tag("[string]")]
    | Annotated[TextPart, Tag("[text]")]
    | Annotated[RefusalPart, Tag("[refusal]")],
    Discriminator(_kind_of_part),
]


class CalledFunction(HistoryModel):
    """Name and arguments of a call."""

    name: str
    arguments: str | dict[str, Any] | None = None
    """JSON, as far as the model has written it."""


class ToolCall(HistoryModel):
    """A call that the assistant made, and the id by which its result refers to it."""

    id: str | None = None
    type: str = "function"
    function: CalledFunction

    @model_validator(mode="before")
    @classmethod
    def _translate_custom_calls(cls, data: Any) -> Any:
        match data:
            case {"type": "custom", "custom": {"name": name, "input": text}}:
                function = {"name": name, "arguments": json.dumps({"input": text})}
                return {"id": data.get("id"), "function": function}
        return data

    def as_dict(self) -> dict[str, Any]:
        """Return the call as chat templates know it."""
        function = {"name": self.function.name, "arguments": self.function.arguments}
        return {"id": self.id, "type": self.type, "function": function}


class Message(HistoryModel):
    """One message of a conversation."""

    role: str
    content: str | Annotated[list[Part], Field(fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    """Calls of the assistant."""
    tool_call_id: str | None = None
    """Id of the call of which this message, of the role ``tool``, is the result."""
    refusal: str | None = None
    """Text of the assistant in place of ``content`` when it declines to answer."""
    reasoning: str | None = None
    """Reasoning of the assistant."""
    reasoning_content: str | None = None
    """Another name for ``reasoning``."""

    @model_validator(mode="before")
    @classmethod
    def _translate_older_fields(cls, data: Any) -> Any:
        """OpenAI's older API has one call per message, and results in the role ``function``."""
        match data:
            case {"function_call": {"name": _} as function} if not data.get("tool_calls"):
                others = {name: value for name, value in data.items() if name != "function_call"}
                return {**others, "tool_calls": [{"function": function}]}
            case {"role": "function"}:
                return {**data, "role": "tool"}
        return data

    @model_validator(mode="after")
    def _has_content(self) -> "Message":
        if self.content is None and self.role != "assistant":
            raise ValueError("content is missing")
        return self

    @property
    def text(self) -> str | None:
        """The content as one text, of which the parts are lines."""
        if isinstance(self.content, list):
            return "\n".join(map(_text_of, self.content))
        return self.content if self.content is not None else self.refusal

    def as_dict(self) -> dict[str, Any]:
        """Return the message as chat templates know it."""
        is_list = isinstance(self.content, list)
        return {
            "role": self.role,
            "content": [_text_of(part) for part in self.content or ()] if is_list else self.text,
            "name": self.name,
            "tool_calls": [call.as_dict() for call in self.tool_calls or ()] or None,
            "tool_call_id": self.tool_call_id,
            "reasoning_content": self.reasoning_content or self.reasoning,
        }


def _text_of(part: str | TextPart | RefusalPart) -> str:
    match part:
        case TextPart(text=text) | RefusalPart(refusal=text):
            return text
    return str(part)
