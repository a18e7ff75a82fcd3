"""The bodies of ``POST /v1/messages`` and ``POST /v1/messages/count_tokens``."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag, model_validator
from pydantic.json_schema import SkipJsonSchema

from minimal_vllm.server.api_model import (
    ApiModel,
    Bookkeeping,
    FieldClass,
    HistoryModel,
    OnlyDefault,
    refuse_with,
)
from minimal_vllm.server.chat.other_apis import PassedOnFields
from minimal_vllm.server.kinds import UNSUPPORTED, UnsupportedKind, by_type
from minimal_vllm.server.messages.blocks import Message, TextOrBlocks
from minimal_vllm.server.models import MAX_STOP_STRINGS, ShortText
from minimal_vllm.server.tools.declaration import FunctionName

NO_SERVER_TOOLS = refuse_with(
    "not supported here: this server runs no tools, so declare them in tools and run them yourself"
)


class ClientTool(HistoryModel):
    """A tool that the client runs."""

    type: Literal["custom"] = "custom"
    name: FunctionName
    description: str | None = None
    input_schema: dict[str, Any]
    """The JSON schema of the input, an object."""
    strict: bool | None = None
    """Enforce the schema for calls that the model chooses to make, as for required calls."""


class UnsupportedTool(UnsupportedKind):
    """A tool of another kind, such as one that Anthropic's servers run."""

    noun: ClassVar[str] = "tools"
    supported: ClassVar[str] = "a name and an input_schema, without a type or of the type custom"


Tool = Annotated[
    Annotated[ClientTool, Tag("[custom]")]
    | Annotated[SkipJsonSchema[UnsupportedTool], Tag(UNSUPPORTED)],
    by_type({"custom": "[custom]"}, "[custom]"),
]


class ToolChoice(ApiModel):
    """Tools that the model may or must call."""

    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    """The tool that must be called, with the type ``tool``."""
    disable_parallel_tool_use: bool = False
    """Allow one call only."""

    @model_validator(mode="after")
    def _name_and_type_agree(self) -> "ToolChoice":
        if (self.type == "tool") != (self.name is not None):
            raise ValueError("name is for the type tool, which needs it")
        return self


class ThinkingConfig(ApiModel):
    """Settings of the model's reasoning."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    """Mode of reasoning, given to the chat template as ``enable_thinking`` unless ``adaptive``."""
    budget_tokens: Bookkeeping = None
    """Number of tokens that Anthropic's models try to reason with."""
    display: Bookkeeping = None
    """Whether Anthropic summarizes the reasoning; here the reasoning itself is in the answer."""


class JsonFormat(ApiModel):
    """JSON that the answer's text is held to."""

    type: Literal["json_schema"]
    json_schema: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(ApiModel):
    """Form of the answer."""

    effort: str | None = None
    """Effort, passed to the chat template as ``reasoning_effort``."""
    format: JsonFormat | None = None
    task_budget: Bookkeeping = None
    """Number of tokens in which Anthropic's models try to complete a task."""


class OtherMessagesFields(ApiModel):
    """Fields that have no effect on this server, or none at their defaults."""

    metadata: Bookkeeping = None
    """The end user."""
    cache_control: Bookkeeping = None
    """Settings of Anthropic's prompt cache; here every prompt is cached."""
    service_tier: Bookkeeping = None
    """Anthropic's price class."""
    speed: Bookkeeping = None
    """Anthropic's class of speed."""
    inference_geo: Bookkeeping = None
    """Region of Anthropic's servers."""
    user_profile_id: Bookkeeping = None
    """The end user, for Anthropic's policies."""
    workspace_id: Bookkeeping = None
    """Part of the client's organization."""
    diagnostics: Bookkeeping = None
    """Report on Anthropic's prompt cache."""
    context_management: Bookkeeping = None
    """Conditions under which Anthropic's servers drop old content; here none is dropped."""
    container: OnlyDefault[str] = None
    mcp_servers: Annotated[list[Any] | None, FieldClass.ONLY_DEFAULT, NO_SERVER_TOOLS] = None
    fallbacks: OnlyDefault[list[Any]] = None


class CountTokensRequest(OtherMessagesFields):
    """The body of ``POST /v1/messages/count_tokens``: what becomes the prompt."""

    model: str | None = None
    """One of the names in ``/v1/models``. Default: the model that is served."""
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    """Messages of the conversation. If the last one is the assistant's, the answer continues it."""
    system: TextOrBlocks | None = None
    """A system message, before the others."""
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    """Tools that may or must be called. Default: ``auto``, if there are tools."""
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: JsonFormat | None = None
    """Older name of ``output_config.format``."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Further variables of the chat template."""


class MessagesRequest(CountTokensRequest, PassedOnFields):
    """The body of ``POST /v1/messages``."""

    max_tokens: int
    """Maximum number of tokens, those of the reasoning included."""
    stream: bool = False
    stop_sequences: Annotated[list[ShortText], Field(max_length=MAX_STOP_STRINGS)] | None = None
