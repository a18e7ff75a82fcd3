"""What the server answers, in OpenAI's shapes with vLLM's additions; for streams see ``Answer``."""

from typing import Literal

from pydantic import BaseModel, Field


class ErrorDetail(BaseModel):
    """What went wrong, and the field that it is about."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetail


class PromptTokensDetails(BaseModel):
    """Part of ``Usage``."""

    cached_tokens: int
    """Found in the prefix cache, and so not computed."""


class Usage(BaseModel):
    """How many tokens a request took; a prompt counts once, however many its completions."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class PromptLogprob(BaseModel):
    """vLLM's form of a log-probability."""

    logprob: float
    rank: int
    decoded_token: str | None


PromptLogprobs = list[dict[int, PromptLogprob] | None]


# ---- /v1/completions ----------------------------------------------------------------------------


class CompletionLogprobs(BaseModel):
    """Parallel lists, with an entry for each token."""

    text_offset: list[int]
    """Where the token begins in the choice's text."""
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(BaseModel):
    """One completion, or what is new of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class Completion(BaseModel):
    """The answer of ``/v1/completions``, whole or one chunk of it."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


# ---- /v1/chat/completions -----------------------------------------------------------------------


class TokenLogprob(BaseModel):
    """One token that might have come."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TokenLogprob):
    """The token that came, and those that might have."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    """An entry for each token."""

    content: list[ChatTokenLogprob]


class CalledFunction(BaseModel):
    """A function's name, and its arguments as JSON."""

    name: str
    arguments: str


class MessageCall(BaseModel):
    """A function that is to be called."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"]
    content: str | None
    reasoning: str | None = None
    reasoning_content: str | None = None
    """The same: vLLM's field has had both names, and clients read the one or the other."""
    tool_calls: list[MessageCall] | None = None


class ChatChoice(BaseModel):
    """One answer to the conversation."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class ChatCompletion(BaseModel):
    """The answer of ``/v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


# ---- the others ---------------------------------------------------------------------------------


class ModelCard(BaseModel):
    """One name that the model answers to."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None = None
    max_model_len: int


class ModelList(BaseModel):
    """The answer of ``/v1/models``."""

    object: Literal["list"]
    data: list[ModelCard]


class Tokens(BaseModel):
    """The answer of ``/tokenize``."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Text(BaseModel):
    """The answer of ``/detokenize``."""

    prompt: str


class Health(BaseModel):
    """The answer of ``/health``."""

    status: str = Field(examples=["ok"])


class Version(BaseModel):
    """The answer of ``/version``."""

    version: str
