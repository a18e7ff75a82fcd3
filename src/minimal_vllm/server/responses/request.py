"""The body of ``POST /v1/responses``."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator
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
from minimal_vllm.server.models import MAX_STOP_STRINGS, ShortText
from minimal_vllm.server.responses.input_items import Input
from minimal_vllm.server.tools.declaration import FunctionName

KEEPS_NOTHING = refuse_with(
    "not supported here: this server keeps no responses, so send the whole conversation as input"
)
NO_BACKGROUND = refuse_with(
    "not supported here: this server keeps no responses, so set stream=true or wait for the answer"
)


class FunctionTool(HistoryModel):
    """A function that the model may call."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """The JSON schema of the arguments, an object; None: the function takes none."""
    strict: bool | None = None
    """Enforce the schema for calls that the model chooses to make, as for required calls."""


class UnsupportedTool(UnsupportedKind):
    """A tool of another kind, such as one that OpenAI's servers run."""

    noun: ClassVar[str] = "tools"
    supported: ClassVar[str] = "function"


Function = Annotated[
    Annotated[FunctionTool, Tag("[function]")]
    | Annotated[SkipJsonSchema[UnsupportedTool], Tag(UNSUPPORTED)],
    by_type({"function": "[function]"}, "[function]"),
]


class NamespaceTool(HistoryModel):
    """Functions under a common name, as Codex declares them."""

    type: Literal["namespace"]
    name: FunctionName
    tools: Annotated[list[Function], Field(fail_fast=True)]


Tool = Annotated[
    Annotated[FunctionTool, Tag("[function]")]
    | Annotated[NamespaceTool, Tag("[namespace]")]
    | Annotated[SkipJsonSchema[UnsupportedTool], Tag(UNSUPPORTED)],
    by_type({"function": "[function]", "namespace": "[namespace]"}, "[function]"),
]


class NamedFunction(HistoryModel):
    """The one function that the model must call."""

    type: Literal["function"]
    name: FunctionName
    namespace: str | None = None


class AllowedTools(HistoryModel):
    """Some of the tools, of which the model may or must call one."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedFunction], Field(fail_fast=True)]


class UnsupportedChoice(UnsupportedKind):
    """A tool of another kind that the model must call."""

    noun: ClassVar[str] = "choices"
    supported: ClassVar[str] = "function or allowed_tools, or one of the words none, auto, required"


def _is_word(value: Any) -> str:
    return "[word]" if isinstance(value, str) else "[object]"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("[word]")]
    | Annotated[
        Annotated[
            Annotated[NamedFunction, Tag("[function]")]
            | Annotated[AllowedTools, Tag("[allowed_tools]")]
            | Annotated[SkipJsonSchema[UnsupportedChoice], Tag(UNSUPPORTED)],
            by_type({"function": "[function]", "allowed_tools": "[allowed_tools]"}, "[function]"),
        ],
        Tag("[object]"),
    ],
    Discriminator(_is_word),
]


class TextFormat(ApiModel):
    """The form of the answer's text."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    """Name for the client's own use; the model sees neither it nor ``description``."""
    description: str | None = None
    json_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None
    """Accepted without effect: the schema is always enforced."""

    @model_validator(mode="after")
    def _schema_and_type_agree(self) -> "TextFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("schema is for the type json_schema, which needs it")
        return self


class TextConfig(ApiModel):
    """Form of the answer's text."""

    format: TextFormat | None = None
    verbosity: Bookkeeping = None
    """Length of the answers of OpenAI's own models."""


class ReasoningConfig(ApiModel):
    """Settings of the model's reasoning."""

    effort: str | None = None
    """Effort, passed to the chat template as ``reasoning_effort``."""
    summary: Bookkeeping = None
    """Summary of the reasoning; here the reasoning itself is in the answer."""
    generate_summary: Bookkeeping = None
    """Older name of ``summary``."""
    context: Bookkeeping = None
    """Part of the earlier reasoning that OpenAI's models see; here they see all that is sent."""
    mode: OnlyDefault[str] = "standard"


class StreamOptions(ApiModel):
    """Contents of a stream in addition to the events."""

    include_obfuscation: Bookkeeping = None
    """Add random characters that hide the length of a chunk, as OpenAI does."""


class OtherResponsesFields(ApiModel):
    """Fields that have no effect on this server, or none at their defaults."""

    metadata: Bookkeeping = None
    """Tags for the client's own use, which the answer repeats."""
    store: Bookkeeping = None
    """Keep the answer on OpenAI's servers; here nothing is kept."""
    user: Bookkeeping = None
    """The end user."""
    safety_identifier: Bookkeeping = None
    """The end user, for OpenAI's policies."""
    service_tier: Bookkeeping = None
    """OpenAI's price class."""
    prompt_cache_key: Bookkeeping = None
    """Hint for OpenAI's prompt cache; here every prompt is cached."""
    prompt_cache_retention: Bookkeeping = None
    """Time that OpenAI keeps a cached prompt."""
    prompt_cache_options: Bookkeeping = None
    """Settings of OpenAI's prompt cache."""
    access_programs: Bookkeeping = None
    """Programs of OpenAI's that the client takes part in."""
    client_metadata: Bookkeeping = None
    """Tags of Codex."""
    image: Bookkeeping = None
    """Treatment of images, which are refused where they are sent."""
    max_tool_calls: Bookkeeping = None
    """Maximum number of calls of built-in tools, which this server doesn't have."""
    previous_response_id: Annotated[str | None, FieldClass.ONLY_DEFAULT, KEEPS_NOTHING] = None
    conversation: Annotated[str | dict[str, Any] | None, FieldClass.ONLY_DEFAULT, KEEPS_NOTHING] = (
        None
    )
    prompt: OnlyDefault[dict[str, Any]] = None
    """Prompt that is stored on OpenAI's servers."""
    background: Annotated[bool | None, FieldClass.ONLY_DEFAULT, NO_BACKGROUND] = False
    background_options: OnlyDefault[dict[str, Any]] = None
    context_management: OnlyDefault[list[Any]] = None
    moderation: OnlyDefault[dict[str, Any]] = None
    top_logprobs: OnlyDefault[int] = 0
    truncation: OnlyDefault[str] = "disabled"


class ResponsesRequest(PassedOnFields, OtherResponsesFields):
    """The body of ``POST /v1/responses``."""

    model: str | None = None
    """One of the names in ``/v1/models``. Default: the model that is served."""
    input: Input
    instructions: str | None = None
    """A system message, before the input."""
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_output_tokens: int | None = None
    """Maximum number of tokens, those of the reasoning included."""
    stop: ShortText | Annotated[list[ShortText], Field(max_length=MAX_STOP_STRINGS)] | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    """Tools that may or must be called. Default: ``auto``, if there are tools."""
    parallel_tool_calls: bool = True
    """Whether the answer may have several calls."""
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    include: (
        list[
            Literal[
                "file_search_call.results",
                "web_search_call.results",
                "web_search_call.action.sources",
                "message.input_image.image_url",
                "computer_call_output.output.image_url",
                "code_interpreter_call.outputs",
                "reasoning.encrypted_content",
            ]
        ]
        | None
    ) = None
    """Additions to the answer. ``reasoning.encrypted_content`` adds a copy of the reasoning, for
    clients that send back nothing else. The others concern built-in tools and images: they change
    nothing here."""

    @property
    def wants_opaque_reasoning(self) -> bool:
        """Whether items of the reasoning have ``encrypted_content``."""
        return "reasoning.encrypted_content" in (self.include or ())
