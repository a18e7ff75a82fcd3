"""What clients may send: OpenAI's fields, and vLLM's for what else the engine can do.

A field that is not here is refused by name.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.server.api_model import ApiModel
from minimal_vllm.server.structured import ResponseFormat, StructuredOutputs
from minimal_vllm.server.tools.protocol import Tool, ToolCall, ToolChoice

TokenId = Annotated[int, Field(ge=0)]
Prompt = str | list[int]
RequestId = Annotated[str, Field(pattern=r"^[!-~]+$", max_length=128)]
"""Printable ASCII: it goes into a header and into the log."""
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]

MAX_STOP_STRINGS = 64
"""Each costs a search per token."""
MAX_BAD_WORDS = 256
"""Each is tokenized twice, and looked for at each token."""
MAX_LOGIT_BIASES = 1024
"""Each costs an addition per token."""
ShortText = Annotated[str, Field(max_length=1000)]

# A list may have millions of wrong entries, of which one error tells enough.
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]


def _check_number_of_biases(biases: Any) -> Any:
    """Before each is looked at: of a dictionary, all that is wrong would be told."""
    if isinstance(biases, dict) and len(biases) > MAX_LOGIT_BIASES:
        raise ValueError(f"{len(biases)} tokens are too many: at most {MAX_LOGIT_BIASES}")
    return biases


LogitBias = Annotated[
    dict[int, float],
    Field(json_schema_extra={"maxProperties": MAX_LOGIT_BIASES}),
    BeforeValidator(_check_number_of_biases),
]

TEMPLATE_ARGUMENTS = frozenset(
    {
        "self",
        "messages",
        "tools",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
    }
)
"""Names that ``chat_template_kwargs`` may not set: they have fields of their own."""


class StreamOptions(ApiModel):
    """What a stream holds beside the text."""

    include_usage: bool = False
    """End with a chunk that has no choices, but the usage."""
    continuous_usage_stats: bool = False
    """Tell the usage so far in each chunk."""


class SamplingFields(ApiModel):
    """The fields of both endpoints. Their ranges are those of ``SamplingParams``."""

    model: str | None = None
    """One of ``/v1/models``; None: the one that is served."""
    stream: bool = False
    stream_options: StreamOptions | None = None
    request_id: RequestId | None = None
    """Becomes a part of the response's id; unique among those that run."""
    priority: int = 0
    """Smaller goes first; needs the server's ``--scheduling-policy=priority``."""
    cache_salt: str | None = None
    """Only requests with the same salt share cached blocks."""
    user: str | None = None
    """For the log alone."""
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    """In log-probabilities, write tokens as ``token_id:5``, so that none are confused."""

    n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: Seed | None = None
    stop: ShortText | Annotated[list[ShortText], Field(max_length=MAX_STOP_STRINGS)] | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    max_tokens: int | None = None
    """At most so many; fewer, with ``finish_reason`` ``length``, if no more fit the context."""
    min_tokens: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    logit_bias: LogitBias | None = None
    allowed_token_ids: TokenIds | None = None
    bad_words: Annotated[list[ShortText], Field(max_length=MAX_BAD_WORDS)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    @model_validator(mode="after")
    def _only_one_says_what_to_match(self) -> "SamplingFields":
        if self.response_format is not None and self.structured_outputs is not None:
            raise ValueError(
                "response_format and structured_outputs both say what the output must match: "
                "give one of them"
            )
        return self

    @model_validator(mode="after")
    def _streaming_fields_agree(self) -> "SamplingFields":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream=true")
        if self.stream and self.prompt_logprobs is not None:
            raise ValueError("prompt_logprobs can't be streamed: set stream=false")
        return self

    def sampling_params(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """What is asked for, else the defaults.

        Raises:
            pydantic.ValidationError: a value is out of range, or two contradict each other.
        """
        names = {field.name for field in fields(SamplingParams)} & type(self).model_fields.keys()
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return SamplingParams(**{**defaults, **given, **self._other_params()})

    def _other_params(self) -> dict[str, Any]:
        """Sampling parameters that this endpoint asks for in its own way."""
        return {}


class CompletionRequest(SamplingFields):
    """The body of ``POST /v1/completions``."""

    prompt: (
        str
        | Annotated[TokenIds, Field(min_length=1)]
        | Annotated[Texts, Field(min_length=1)]
        | Annotated[list[TokenIds], Field(min_length=1, fail_fast=True)]
    )
    """One prompt or several, each a text or its tokens."""
    echo: bool = False
    """Begin each completion with its prompt; with ``max_tokens=0`` there is nothing else."""
    logprobs: int | None = None
    """Log-probabilities of so many top tokens, and of the one that was chosen."""
    add_special_tokens: bool = True
    """Put around a text what the tokenizer puts there, mostly a BOS token."""

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts, as a list."""
        prompt = self.prompt
        if isinstance(prompt, str) or isinstance(prompt[0], int):
            return [prompt]
        return list(prompt)

    @property
    def only_echo(self) -> bool:
        """Whether nothing is to be generated."""
        return self.echo and self.max_tokens == 0

    def _other_params(self) -> dict[str, Any]:
        others = {}
        if self.echo and self.prompt_logprobs is None and self.logprobs is not None:
            others["prompt_logprobs"] = self.logprobs
        if self.only_echo:
            others["max_tokens"] = 1  # which is thrown away: the engine always gives a token
        return others


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


class TokenizeRequest(ApiModel):
    """What to tokenize: a text."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeChatRequest(ChatFields):
    """What to tokenize: a conversation."""

    model: str | None = None
    return_token_strs: bool = False


def _kind_of_tokenize(body: Any) -> str:
    has_messages = "messages" in body if isinstance(body, dict) else hasattr(body, "messages")
    return "[chat]" if has_messages else "[text]"


AnyTokenizeRequest = Annotated[
    Annotated[TokenizeRequest, Tag("[text]")] | Annotated[TokenizeChatRequest, Tag("[chat]")],
    Discriminator(_kind_of_tokenize),
]
"""The body of ``POST /tokenize``."""


class DetokenizeRequest(ApiModel):
    """The body of ``POST /detokenize``."""

    model: str | None = None
    tokens: TokenIds
