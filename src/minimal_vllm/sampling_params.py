"""What a request may ask of the sampler, with vLLM's names and meanings."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

GREEDY_BELOW = 1e-5
"""A temperature under this means greedy decoding: the division by it would overflow."""

TokenId = Annotated[int, Field(ge=0)]

_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, config=_CONFIG)
class StructuredOutputsParams:
    """What the output must match as a whole; exactly one of the first five is given."""

    json: str | dict[str, Any] | None = None
    """JSON that is valid by this JSON schema; properties come in the schema's order. Objects that
    name their properties have no others, unless the schema asks for them."""
    regex: str | None = None
    r"""What this regular expression matches as a whole: Rust's syntax, without look-around; \d and
    \w are ASCII."""
    choice: Annotated[list[str], Field(min_length=1)] | None = None
    """One of these texts."""
    grammar: str | None = None
    """A text of this context-free grammar, in the syntax of Lark or in EBNF as llama.cpp's."""
    json_object: bool | None = None
    """Any JSON object."""
    disable_any_whitespace: bool = False
    """Of JSON: no whitespace between its tokens, rather than up to 32 characters of it."""
    disable_additional_properties: bool = False
    """Close every object of the JSON schema that names its properties. Default: close those for
    which it can't contradict another part of the schema."""
    reasoning: Literal["begun", "possible"] | None = None
    """What may come before it: text up to ``</think>``, if the prompt has ``begun`` it; that, from
    ``<think>`` on, or nothing, if it is ``possible``; or, by default, nothing."""

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
        """The name of the one that is given."""
        return self._given[0]


@dataclass(config=ConfigDict(**_CONFIG, validate_assignment=True))
class SamplingParams:
    """How the tokens of one request are chosen, when it stops, and what is returned.

    Fields can be assigned, and are checked then too; a request keeps what it was given.

    Raises ``pydantic.ValidationError`` (a ``ValueError``) that names the field if a value is out
    of range, if two contradict each other, or if a name is unknown.
    """

    n: Annotated[int, Field(ge=1)] = 1
    """How many completions to sample; with prefix caching they share their prompt's blocks."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Subtracted from the logit of every token that the output holds already."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Subtracted once for each time that the output holds the token."""
    repetition_penalty: Annotated[float, Field(ge=1e-30, le=1e30)] = 1.0
    """Divides the positive, multiplies the negative logits of tokens seen in prompt or output."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Divides the logits; 0 is greedy decoding."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Keep the fewest most probable tokens whose probabilities sum to at least this."""
    top_k: Annotated[int, Field(ge=-1)] = 0
    """Keep this many of the most probable tokens; 0 or -1 keeps all."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Drop tokens less probable than this times the most probable one."""
    seed: int | None = None
    """Makes this request's tokens reproducible, whatever else runs beside it; -1 is none."""
    stop: str | list[str] | None = None
    """Strings that end the output, wherever in it they appear."""
    stop_token_ids: list[TokenId] | None = None
    """Tokens that end the output, beside the model's own end-of-sequence tokens."""
    ignore_eos: bool = False
    """Go on generating after the model's end-of-sequence token."""
    max_tokens: Annotated[int, Field(ge=1)] | None = 16
    """At most so many tokens are generated; None: as many as the model's length allows."""
    min_tokens: Annotated[int, Field(ge=0)] = 0
    """No stop token is sampled, and no stop string heeded, before so many tokens."""
    logprobs: Annotated[int, Field(ge=-1)] | None = None
    """Return the log-probabilities of so many top tokens at each step (-1: of all)."""
    prompt_logprobs: Annotated[int, Field(ge=-1)] | None = None
    """The same for each token of the prompt."""
    detokenize: bool = True
    """Turn the tokens into text."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    include_stop_str_in_output: bool = False
    """Keep the stop string that ended the output in its text."""
    logit_bias: dict[TokenId, float] | None = None
    """Added to the logits of these tokens; clamped to [-100, 100]."""
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1)] | None = None
    """If given, no other token can be sampled."""
    bad_words: list[str] | None = None
    """Words that the output must not contain."""
    structured_outputs: StructuredOutputsParams | None = None
    """What the output must match; it ends where nothing could be added, even before min_tokens."""

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
        if self.stop and not self.detokenize:
            raise ValueError("stop strings are found in the text: they need detokenize=True")
        return self

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature < GREEDY_BELOW

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
