"""Sampling parameters of a request, with vLLM's names and meanings."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from minimal_vllm.settings import SETTINGS, clear_errors
from minimal_vllm.vllm_arguments import BEAM_SEARCH, SAMPLING, accepts

GREEDY_BELOW = 1e-5
"""Temperature below which decoding is greedy, because dividing logits by it would overflow."""

TokenId = Annotated[int, Field(ge=0)]
MAX_LOGPROB_TOKEN_IDS = 128
"""Maximum number of ``logprob_token_ids``, as in vLLM."""


@clear_errors
@dataclass(frozen=True, config=SETTINGS)
class StructuredOutputsParams:
    """Constraint on the whole output. Exactly one of the first five fields is set.

    Raises ``SettingsError`` (a ``ValueError``) otherwise.
    """

    json: str | dict[str, Any] | None = None
    """JSON schema that the output must satisfy, with its properties in the schema's order. Objects
    that name their properties have no others, unless the schema asks for them."""
    regex: str | None = None
    r"""Regular expression that the whole output must match, in Rust's syntax without look-around.
    \d and \w are ASCII."""
    choice: Annotated[list[str], Field(min_length=1)] | None = None
    """Texts of which the output must be one."""
    grammar: str | None = None
    """Context-free grammar of the output, in Lark's syntax or in EBNF as llama.cpp has it."""
    json_object: bool | None = None
    """Require any JSON object."""
    disable_any_whitespace: bool = False
    """Allow no whitespace between the tokens of JSON. Default: up to 32 characters."""
    disable_additional_properties: bool = False
    """Close every object of the JSON schema that names its properties. Default: close those for
    which it can't contradict another part of the schema."""
    reasoning: Literal["begun", "possible", "harmony", "harmony calls"] | None = None
    """Reasoning allowed before the constrained output: text up to ``</think>`` (``begun``: the
    prompt ends inside it), or optionally ``<think>``, text and ``</think>`` (``possible``), or the
    messages of gpt-oss before the answer (``harmony``), or before a grammar that has the headers of
    messages itself (``harmony calls``). Default: none."""

    @model_validator(mode="after")
    def _one_is_given(self) -> "StructuredOutputsParams":
        if len(self._given) != 1:
            given = " and ".join(self._given) or "none"
            raise ValueError(
                f"exactly one of json, regex, choice, grammar and json_object must be given, "
                f"not {given}"
            )
        return self

    @property
    def _given(self) -> list[str]:
        kinds = ("json", "regex", "choice", "grammar", "json_object")
        return [kind for kind in kinds if getattr(self, kind) not in (None, False)]

    @property
    def kind(self) -> str:
        """Return the name of the field that is set."""
        return self._given[0]


@accepts(SAMPLING)
@clear_errors
@dataclass(config=ConfigDict(**SETTINGS, validate_assignment=True))
class SamplingParams:
    """Sampling, stopping and output of one request.

    Fields can be assigned, and are checked then too. A running request keeps the values with which
    it was added. vLLM's other arguments are accepted at values that change nothing here.

    Raises ``SettingsError`` (a ``ValueError``) that names the field if a value is out of range, if
    two fields contradict each other, or if a name is unknown.
    """

    n: Annotated[int, Field(ge=1)] = 1
    """Number of completions to sample. With prefix caching they share the prompt's KV blocks."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Number subtracted from the logits of tokens that occur in the output."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Number subtracted from a token's logit once for each of its occurrences in the output."""
    repetition_penalty: Annotated[float, Field(ge=1e-30, le=1e30)] = 1.0
    """Divisor of positive logits, and factor of negative ones, of tokens in prompt or output."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Divisor of the logits; 0 selects greedy decoding."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the smallest set of most probable tokens with at least this total probability."""
    top_k: Annotated[int, Field(ge=-1)] = 0
    """Number of most probable tokens to sample from; 0 or -1: all."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Minimum probability of a token, relative to the most probable one."""
    seed: int | None = None
    """Seed that makes the request's tokens reproducible in any batch. Default, and -1: no seed."""
    stop: str | list[str] | None = None
    """Strings that end the output where they appear in it."""
    stop_token_ids: list[TokenId] | None = None
    """Token ids that end the output, in addition to the model's end-of-sequence tokens."""
    ignore_eos: bool = False
    """Continue after the model's end-of-sequence token."""
    max_tokens: Annotated[int, Field(ge=1)] | None = 16
    """Maximum number of output tokens; None: up to the model's maximum length."""
    min_tokens: Annotated[int, Field(ge=0)] = 0
    """Minimum number of output tokens before a stop token or stop string can end the output."""
    logprobs: Annotated[int, Field(ge=-1)] | None = None
    """Number of top tokens whose log-probabilities are returned for each output token; -1: all."""
    logprob_token_ids: Annotated[list[TokenId], Field(max_length=MAX_LOGPROB_TOKEN_IDS)] | None = (
        None
    )
    """Token ids whose log-probabilities are returned for each output token, instead of those of the
    top tokens."""
    prompt_logprobs: Annotated[int, Field(ge=-1)] | None = None
    """Number of top tokens whose log-probabilities are returned for each prompt token; -1: all."""
    detokenize: bool = True
    """Return text; otherwise only token ids."""
    skip_special_tokens: bool = True
    """Omit special tokens from the text."""
    include_stop_str_in_output: bool = False
    """Include the stop string that ended the output in its text."""
    logit_bias: dict[TokenId, float] | None = None
    """Numbers added to the logits of tokens, clamped to [-100, 100]."""
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1)] | None = None
    """Token ids that can be sampled. Default: all."""
    bad_words: list[str] | None = None
    """Words that are never generated."""
    structured_outputs: StructuredOutputsParams | None = None
    """Constraint on the output, which ends when nothing can follow, even before min_tokens."""

    @field_validator("stop")
    @classmethod
    def _stop_strings_are_not_empty(cls, stop: str | list[str] | None) -> str | list[str] | None:
        if stop == "" or (isinstance(stop, list) and "" in stop):
            raise ValueError("a stop string must not be empty")
        return stop

    @field_validator("bad_words")
    @classmethod
    def _bad_words_are_not_empty(cls, bad_words: list[str] | None) -> list[str] | None:
        if bad_words and not all(word.strip() for word in bad_words):
            raise ValueError("a bad word must not be empty")
        return bad_words

    @model_validator(mode="after")
    def _fields_agree(self) -> "SamplingParams":
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens})"
            )
        if self.greedy and self.n > 1:
            raise ValueError(f"n must be 1 with greedy sampling (temperature 0), not {self.n}")
        if self.logprob_token_ids and self.logprobs not in (None, len(self.logprob_token_ids)):
            raise ValueError(
                f"logprob_token_ids replaces logprobs: leave logprobs out, not {self.logprobs}"
            )
        if self.stop and not self.detokenize:
            raise ValueError("stop strings are searched for in the text: they need detokenize=True")
        return self

    @property
    def greedy(self) -> bool:
        """Return whether the most probable token is always chosen."""
        return self.temperature < GREEDY_BELOW

    @property
    def asked_logprobs(self) -> int | list[int] | None:
        """Return the number of top tokens, or the ids, whose log-probabilities are asked for."""
        return self.logprob_token_ids or self.logprobs

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Return ``stop`` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


@accepts(BEAM_SEARCH)
@clear_errors
@dataclass(frozen=True, config=SETTINGS)
class BeamSearchParams:
    """Parameters of ``LLM.beam_search``.

    Raises ``SettingsError`` (a ``ValueError``) for a value that is out of range.
    """

    beam_width: Annotated[int, Field(ge=1)]
    """Number of beams that are continued, and of those that are returned."""
    max_tokens: Annotated[int, Field(ge=1)]
    """Maximum number of output tokens."""
    ignore_eos: bool = False
    """Continue beams after the end-of-sequence token."""
    length_penalty: float = 1.0
    """Exponent of the length by which a beam's log-probability is divided: above 1, longer beams
    are preferred."""
