"""Models that the endpoints share: the fields that ask for text, usage, and log-probabilities.

The fields are OpenAI's, and vLLM's for everything else that the engine can do. Other fields are
refused by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from minimal_vllm.sampling_params import MAX_LOGPROB_TOKEN_IDS, SamplingParams
from minimal_vllm.server.api_model import ApiModel, Bookkeeping, FieldClass, field_error
from minimal_vllm.server.structured import ResponseFormat, StructuredOutputs

TokenId = Annotated[int, Field(ge=0)]
Prompt = str | list[int]
RequestId = Annotated[str, Field(pattern=r"^[!-~]+$", max_length=128)]
"""Id of a request: printable ASCII, because it is written to a header and to the log."""
CacheSalt = Annotated[str, Field(min_length=1)]
"""An empty salt would keep nothing apart."""
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]

MAX_STOP_STRINGS = 64
"""Maximum number of stop strings: each costs a search per token."""
MAX_BAD_WORDS = 256
"""Maximum number of bad words: each is tokenized twice, and compared at each token."""
MAX_LOGIT_BIASES = 1024
"""Maximum number of biased tokens: each costs an addition per token."""
ShortText = Annotated[str, Field(max_length=1000)]

# A list may have millions of wrong entries; one error is enough.
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]


def _check_number_of_biases(biases: Any) -> Any:
    """Check the number first, since pydantic reports each wrong entry of a dictionary."""
    if isinstance(biases, dict) and len(biases) > MAX_LOGIT_BIASES:
        raise ValueError(f"{len(biases)} tokens are too many: at most {MAX_LOGIT_BIASES}")
    return biases


LogitBias = Annotated[
    dict[int, float],
    Field(json_schema_extra={"maxProperties": MAX_LOGIT_BIASES}),
    BeforeValidator(_check_number_of_biases),
]


class StreamOptions(ApiModel):
    """Parts of a stream besides the text."""

    include_usage: bool = False
    """End the stream with a chunk that has the usage and no choices."""
    continuous_usage_stats: bool = False
    """Add the usage so far to each chunk, if ``include_usage`` is set."""
    include_obfuscation: Bookkeeping = None
    """Add random characters that hide the length of a chunk, as OpenAI does."""


class SamplingFields(ApiModel):
    """Fields of both endpoints. Their ranges are those of ``SamplingParams``."""

    model: str | None = None
    """One of the names in ``/v1/models``. Default: the model that is served."""
    stream: bool = False
    stream_options: StreamOptions | None = None
    request_id: RequestId | None = None
    """Part of the response's id; must be unique among running requests."""
    priority: int = 0
    """Priority; smaller values run first. Needs the server's ``--scheduling-policy=priority``."""
    cache_salt: CacheSalt | None = None
    """Salt of the prefix cache: only requests with the same salt share cached blocks."""
    user: Bookkeeping = None
    """Name of the end user."""
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    """Write the tokens of log-probabilities as ``token_id:5``, so that all names differ."""

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
    """Maximum number of output tokens; fewer if no more fit into the context."""
    min_tokens: int | None = None
    logprob_token_ids: Annotated[TokenIds, Field(max_length=MAX_LOGPROB_TOKEN_IDS)] | None = None
    """Tokens to return log-probabilities of, instead of the most probable ones."""
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    """Maximum number of prompt tokens to keep; -1: as many as leave room for ``max_tokens``."""
    truncation_side: Literal["left", "right"] = "left"
    """Side on which ``truncate_prompt_tokens`` removes tokens. Default: left, the beginning."""
    logit_bias: LogitBias | None = None
    allowed_token_ids: TokenIds | None = None
    bad_words: Annotated[list[ShortText], Field(max_length=MAX_BAD_WORDS)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    @model_validator(mode="after")
    def _only_one_says_what_to_match(self) -> "SamplingFields":
        has_format = self.response_format is not None and self.response_format.type != "text"
        if has_format and self.structured_outputs is not None:
            raise field_error(
                "response_format", "structured_outputs says what to match, too: give one of them"
            )
        return self

    @model_validator(mode="after")
    def _streaming_fields_agree(self) -> "SamplingFields":
        options = self.stream_options or StreamOptions()
        if not self.stream and (options.include_usage or options.continuous_usage_stats):
            raise field_error("stream_options", "needs stream=true")
        if self.stream and self.prompt_logprobs is not None:
            raise field_error("prompt_logprobs", "can't be streamed: set stream=false")
        return self

    @property
    def bookkeeping(self) -> dict[str, Any]:
        """The request's fields that are only written to the log."""
        return self.given(FieldClass.BOOKKEEPING)

    def client_field(self, name: str) -> str:
        """Return the request's field from which a sampling parameter comes."""
        return name

    def sampling_params(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """Return the request's sampling parameters; absent ones are the defaults.

        Raises:
            SettingsError: a value is out of range, or two contradict each other.
        """
        names = {field.name for field in fields(SamplingParams)} & type(self).model_fields.keys()
        names.discard("structured_outputs")  # set once its grammar has been compiled
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        given |= self._other_params()
        if self.logprob_token_ids:
            given["logprobs"] = None  # the request's only says that there are to be some
        return SamplingParams(**{**defaults, **given})

    def _other_params(self) -> dict[str, Any]:
        """Return the sampling parameters that come from this endpoint's own fields."""
        return {}


@dataclass(frozen=True, slots=True)
class PromptTokensDetails:
    """Part of ``Usage``."""

    cached_tokens: int
    """Number of prompt tokens that were found in the prefix cache."""


@dataclass(frozen=True, slots=True)
class CompletionTokensDetails:
    """Part of ``Usage``."""

    reasoning_tokens: int
    """Tokens of reasoning, its tags included."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Numbers of tokens of a request; a prompt counts once, however many its completions.

    It is not a pydantic model, because one is made for each chunk of a stream.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class PromptLogprob(BaseModel):
    """Log-probability of a prompt token, in vLLM's form."""

    logprob: float
    rank: int
    decoded_token: str | None


PromptLogprobs = list[dict[int, PromptLogprob] | None]
