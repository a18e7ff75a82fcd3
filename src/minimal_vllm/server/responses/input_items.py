"""Items of a conversation: messages, function calls and their outputs, and reasoning.

They are a record of the conversation, as in ``chat.history``: unknown keys are dropped, and only
items and content of an unsupported kind are refused.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag
from pydantic.json_schema import SkipJsonSchema

from minimal_vllm.server.api_model import HistoryModel
from minimal_vllm.server.kinds import UNSUPPORTED, UnsupportedKind, by_type
from minimal_vllm.server.responses.opaque_reasoning import decode_reasoning

TEXT_TYPES = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


class TextContent(HistoryModel):
    """A text, which is a part of an item's content."""

    type: Literal["input_text", "output_text", "text", "summary_text", "reasoning_text"]
    text: str


class RefusalContent(HistoryModel):
    """A text in which the assistant declines to answer."""

    type: Literal["refusal"]
    refusal: str


class UnsupportedContent(UnsupportedKind):
    """Content that isn't text."""

    noun: ClassVar[str] = "parts"
    supported: ClassVar[str] = "input_text and output_text"


Content = Annotated[
    Annotated[TextContent, Tag("[text]")]
    | Annotated[RefusalContent, Tag("[refusal]")]
    | Annotated[SkipJsonSchema[UnsupportedContent], Tag(UNSUPPORTED)],
    by_type({**dict.fromkeys(TEXT_TYPES, "[text]"), "refusal": "[refusal]"}, "[text]"),
]
Contents = Annotated[list[Content], Field(fail_fast=True)]
TextOrContents = str | Contents


class InputMessage(HistoryModel):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: TextOrContents


class FunctionCall(HistoryModel):
    """A call that the assistant made, and the id by which its output refers to it."""

    type: Literal["function_call"]
    call_id: str
    name: str
    namespace: str | None = None
    """The namespace of the function, if it was declared in one."""
    arguments: str
    """JSON, as far as the model has written it."""


class FunctionCallOutput(HistoryModel):
    """Result of a function call."""

    type: Literal["function_call_output"]
    call_id: str
    output: TextOrContents


class ReasoningItem(HistoryModel):
    """Reasoning of the assistant."""

    type: Literal["reasoning"]
    summary: Contents | None = None
    content: Contents | None = None
    encrypted_content: str | None = None
    """Text of the reasoning as this server encodes it."""

    @property
    def text(self) -> str:
        """Text of the reasoning, or of its summary if there is no reasoning."""
        if not self.content and (text := decode_reasoning(self.encrypted_content or "")):
            return text
        parts = self.content or self.summary or ()
        return "\n".join(part.text for part in parts if isinstance(part, TextContent))


class UnsupportedItem(UnsupportedKind):
    """An item of another kind, such as a call of a built-in tool."""

    noun: ClassVar[str] = "items"
    supported: ClassVar[str] = "message, function_call, function_call_output and reasoning"
    hints: ClassVar[Mapping[str, str]] = {
        "item_reference": "this server keeps no responses, so send the item itself "
        "(with the AI SDK: providerOptions: {openai: {store: false}})"
    }


ITEM_TYPES = ("message", "function_call", "function_call_output", "reasoning")

Item = Annotated[
    Annotated[InputMessage, Tag("[message]")]
    | Annotated[FunctionCall, Tag("[function_call]")]
    | Annotated[FunctionCallOutput, Tag("[function_call_output]")]
    | Annotated[ReasoningItem, Tag("[reasoning]")]
    | Annotated[SkipJsonSchema[UnsupportedItem], Tag(UNSUPPORTED)],
    by_type({name: f"[{name}]" for name in ITEM_TYPES}, "[message]"),
]


def _is_text(value: Any) -> str:
    return "[string]" if isinstance(value, str) else "[items]"


Input = Annotated[
    Annotated[str, Tag("[string]")]
    | Annotated[list[Item], Field(min_length=1, fail_fast=True), Tag("[items]")],
    Discriminator(_is_text),
]
"""Input that the model answers: a text of the user, or the items of a conversation."""
