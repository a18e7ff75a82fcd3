"""What a chat's request may have: the conversation, the tools, and how the answer is sampled."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from minimal_vllm.server.api_model import ApiModel
from minimal_vllm.server.config import TEMPLATE_ARGUMENTS
from minimal_vllm.server.models import SamplingFields
from minimal_vllm.server.tools.protocol import Tool, ToolCall, ToolChoice


class TextPart(ApiModel):
    """A part of a message; there are no others than texts."""

    type: Literal["text"]
    text: str


class Message(ApiModel):
    """One message of a conversation."""

    role: str
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    """Of the assistant."""
    tool_call_id: str | None = None
    """Of a tool: the call of which ``content`` is the result."""
    reasoning: str | None = None
    """Of the assistant."""
    reasoning_content: str | None = None
    """Another name for it."""

    @model_validator(mode="after")
    def _someone_says_something(self) -> "Message":
        if self.content is None and self.role != "assistant":
            raise ValueError("content is missing")
        return self

    @property
    def text(self) -> str | None:
        """The content as one text, of which the parts are lines."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content

    def as_dict(self) -> dict[str, Any]:
        """As chat templates know it."""
        return {
            "role": self.role,
            "content": self.text,
            "name": self.name,
            "tool_calls": [call.model_dump() for call in self.tool_calls or ()] or None,
            "tool_call_id": self.tool_call_id,
            "reasoning_content": self.reasoning_content or self.reasoning,
        }


class ChatFields(ApiModel):
    """How a conversation becomes a prompt."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    """What the model may call; the chat template tells it, whatever ``tool_choice`` says."""
    add_generation_prompt: bool = True
    """End the prompt with the header of the assistant's next message."""
    continue_final_message: bool = False
    """Leave the last message open, to be continued; needs ``add_generation_prompt=false``."""
    chat_template: str | None = None
    """Used in place of the model's; needs the server's ``--trust-request-chat-template``."""
    chat_template_kwargs: dict[str, Any] | None = None
    """What else the template knows, such as ``enable_thinking``."""
    add_special_tokens: bool = False
    """As for a completion; most templates write these tokens themselves."""

    @field_validator("tools")
    @classmethod
    def _tools_are_told_apart(cls, tools: list[Tool] | None) -> list[Tool] | None:
        names = [tool.function.name for tool in tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        return tools

    @model_validator(mode="after")
    def _names_are_free(self) -> "ChatFields":
        taken = TEMPLATE_ARGUMENTS & (self.chat_template_kwargs or {}).keys()
        if taken:
            raise ValueError(f"chat_template_kwargs can't set {', '.join(sorted(taken))}")
        return self


class ChatCompletionRequest(SamplingFields, ChatFields):
    """The body of ``POST /v1/chat/completions``."""

    logprobs: bool = False
    top_logprobs: int | None = None
    """Log-probabilities of so many top tokens; needs ``logprobs=true``."""
    max_completion_tokens: int | None = None
    """OpenAI's newer name of ``max_tokens``."""
    tool_choice: ToolChoice | None = None
    """None: ``auto``, if there are tools."""
    parallel_tool_calls: bool = True
    """Whether a message may have several calls."""

    @model_validator(mode="after")
    def _two_names_agree(self) -> "ChatCompletionRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            raise ValueError("max_tokens and max_completion_tokens are the same: give one of them")
        return self

    def _other_params(self) -> dict[str, Any]:
        # Pydantic takes False for 0, so this is never left to ``sampling_params``.
        others: dict[str, Any] = {"logprobs": (self.top_logprobs or 0) if self.logprobs else None}
        if self.max_completion_tokens is not None:
            others["max_tokens"] = self.max_completion_tokens
        return others
