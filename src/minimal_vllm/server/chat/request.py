"""Request of a chat: the conversation, the tools, and how the answer is sampled."""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from minimal_vllm.server.api_model import ApiModel, FieldClass, TemplateHint, field_error
from minimal_vllm.server.chat.history import Message
from minimal_vllm.server.config import TEMPLATE_ARGUMENTS
from minimal_vllm.server.models import SamplingFields
from minimal_vllm.server.other_fields import OtherChatFields
from minimal_vllm.server.tools.declaration import Tool, ToolChoice


class ChatFields(ApiModel):
    """Fields that say how a conversation becomes a prompt."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    """Functions that the model may call; the template shows them, whatever ``tool_choice`` says."""
    add_generation_prompt: bool = True
    """End the prompt with the header of the assistant's next message."""
    continue_final_message: bool = False
    """Leave the last message open, to be continued; needs ``add_generation_prompt=false``."""
    chat_template: str | None = None
    """Template to use in place of the model's; needs ``--trust-request-chat-template``."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Other variables of the template, such as ``enable_thinking``."""
    reasoning_effort: TemplateHint[str] = None
    """``low``, ``medium``, ``high`` or what else the template knows."""
    documents: TemplateHint[list[dict[str, Any]]] = None
    """Documents that the template shows to the model."""
    add_special_tokens: bool = False
    """Add the tokenizer's special tokens, although most templates write them themselves."""

    @field_validator("tools")
    @classmethod
    def _tools_are_told_apart(cls, tools: list[Tool] | None) -> list[Tool] | None:
        names = [tool.function.name for tool in tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        return tools

    @property
    def template_variables(self) -> dict[str, Any]:
        """The variables of the template that the request sets."""
        return {**self.given(FieldClass.TEMPLATE_HINT), **(self.chat_template_kwargs or {})}

    @model_validator(mode="after")
    def _names_are_free(self) -> "ChatFields":
        taken = TEMPLATE_ARGUMENTS & (self.chat_template_kwargs or {}).keys()
        if taken:
            raise field_error("chat_template_kwargs", f"can't set {', '.join(sorted(taken))}")
        return self


class ChatCompletionRequest(SamplingFields, ChatFields, OtherChatFields):
    """Body of ``POST /v1/chat/completions``."""

    logprobs: bool = False
    top_logprobs: int | None = None
    """Number of most probable tokens to return; needs ``logprobs=true``."""
    max_completion_tokens: int | None = None
    """Newer name of ``max_tokens``."""
    tool_choice: ToolChoice | None = None
    """Tools that may or must be called. Default: ``auto``."""
    parallel_tool_calls: bool = True
    """Allow several calls in one message."""
    include_reasoning: bool = True
    """Return the reasoning; if false, the model reasons, but only its answer is returned."""
    echo: bool = False
    """Begin the answer with the last message of the conversation, if that is the assistant's."""

    @property
    def echoed(self) -> str:
        """Text that the answer begins with, before the generated one."""
        last = self.messages[-1]
        return last.text or "" if self.echo and last.role == "assistant" else ""

    @model_validator(mode="after")
    def _two_names_agree(self) -> "ChatCompletionRequest":
        if self.top_logprobs and not self.logprobs:
            raise field_error("top_logprobs", "needs logprobs=true")
        if self.logprob_token_ids and not self.logprobs:
            raise field_error("logprob_token_ids", "needs logprobs=true")
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            raise field_error(
                "max_completion_tokens", "max_tokens means the same: give one of them"
            )
        return self

    def client_field(self, name: str) -> str:
        """Return the field from which a sampling parameter comes."""
        if name == "prompt_token_ids":
            return "messages"
        if name == "logprobs":
            return "top_logprobs"
        if name == "max_tokens" and self.max_completion_tokens is not None:
            return "max_completion_tokens"
        return name

    def _other_params(self) -> dict[str, Any]:
        # Pydantic takes False for 0, so this is never left to ``sampling_params``.
        others: dict[str, Any] = {"logprobs": (self.top_logprobs or 0) if self.logprobs else None}
        if self.max_completion_tokens is not None:
            others["max_tokens"] = self.max_completion_tokens
        return others
