"""Blocks of content: texts, reasoning, calls of tools and their results.

They are a record of the conversation, as in ``chat.history``: unknown keys, such as
``cache_control``, are dropped, and only blocks of an unsupported kind are refused.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag
from pydantic.json_schema import SkipJsonSchema

from minimal_vllm.server.api_model import HistoryModel
from minimal_vllm.server.kinds import UNSUPPORTED, UnsupportedKind, by_type


class TextBlock(HistoryModel):
    """A text."""

    type: Literal["text"]
    text: str


class ThinkingBlock(HistoryModel):
    """Reasoning of the assistant."""

    type: Literal["thinking"]
    thinking: str


class RedactedThinkingBlock(HistoryModel):
    """Reasoning that only Anthropic's servers can read; the model doesn't see it."""

    type: Literal["redacted_thinking"]


class ToolUseBlock(HistoryModel):
    """A call that the assistant made, and the id by which its result refers to it."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class UnsupportedTextBlock(UnsupportedKind):
    """A block that isn't text."""

    noun: ClassVar[str] = "blocks"
    supported: ClassVar[str] = "text"


OnlyText = Annotated[
    Annotated[TextBlock, Tag("[text]")]
    | Annotated[SkipJsonSchema[UnsupportedTextBlock], Tag(UNSUPPORTED)],
    by_type({"text": "[text]"}, "[text]"),
]
TextOrBlocks = str | Annotated[list[OnlyText], Field(fail_fast=True)]
"""A text, whole or in blocks."""


class ToolResultBlock(HistoryModel):
    """Result of a tool call."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: TextOrBlocks | None = None


class UnsupportedBlock(UnsupportedKind):
    """A block of another kind, such as an image, or a call of a tool that a server runs."""

    noun: ClassVar[str] = "blocks"
    supported: ClassVar[str] = "text, thinking, tool_use and tool_result"


BLOCK_TYPES = ("text", "thinking", "redacted_thinking", "tool_use", "tool_result")

Block = Annotated[
    Annotated[TextBlock, Tag("[text]")]
    | Annotated[ThinkingBlock, Tag("[thinking]")]
    | Annotated[RedactedThinkingBlock, Tag("[redacted_thinking]")]
    | Annotated[ToolUseBlock, Tag("[tool_use]")]
    | Annotated[ToolResultBlock, Tag("[tool_result]")]
    | Annotated[SkipJsonSchema[UnsupportedBlock], Tag(UNSUPPORTED)],
    by_type({name: f"[{name}]" for name in BLOCK_TYPES}, "[text]"),
]


class Message(HistoryModel):
    """One message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Field(fail_fast=True)]
