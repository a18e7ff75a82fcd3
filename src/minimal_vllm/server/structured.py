"""``response_format`` and ``structured_outputs``: the form that an output must match."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from minimal_vllm.sampling.json_schema import find_keyword
from minimal_vllm.sampling_params import StructuredOutputsParams
from minimal_vllm.server.api_model import ApiModel, Bookkeeping, OnlyDefault


class StructuredOutputs(ApiModel):
    """vLLM's object that constrains the output. Exactly one of the first five fields is given."""

    json_: Annotated[str | dict[str, Any] | None, Field(alias="json")] = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1)] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    disable_fallback: Bookkeeping = None
    """Forbid vLLM to fall back to another library. Without effect: this server has only one."""
    whitespace_pattern: OnlyDefault[str] = None
    structural_tag: OnlyDefault[str] = None

    @model_validator(mode="after")
    def _is_consistent(self) -> "StructuredOutputs":
        try:
            _ = self.params
        except ValidationError as error:
            raise ValueError(error.errors()[0]["ctx"]["error"]) from error
        return self

    @property
    def params(self) -> StructuredOutputsParams:
        """Constraint as parameters of the engine."""
        return StructuredOutputsParams(
            json=self.json_,
            regex=self.regex,
            choice=self.choice,
            grammar=self.grammar,
            json_object=self.json_object,
            disable_any_whitespace=self.disable_any_whitespace,
            disable_additional_properties=self.disable_additional_properties,
        )


class JsonSchema(ApiModel):
    """JSON schema of a ``ResponseFormat``."""

    name: str
    """Name for the client's own use; the model sees neither it nor ``description``."""
    description: str | None = None
    json_schema: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None
    """Accepted without effect: the output matches the schema in any case."""


class ResponseFormat(ApiModel):
    """OpenAI's object that asks for JSON."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_and_type_agree(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema is for the type json_schema, which needs it")
        return self


@dataclass(frozen=True, slots=True)
class Constraint:
    """Form that an output must match, and the part of the request that asks for it."""

    params: StructuredOutputsParams
    field: str
    """The request's field that asks for it."""
    schemas: Mapping[str, dict[str, Any]] | None = None
    """Schemas that the form consists of, if there are several, by the request's fields."""

    def blame(self, reason: str) -> tuple[str, str]:
        """Return the field that makes the constraint unusable, and a sentence that says why.

        Args:
            reason: what the grammar's compiler says.
        """
        unenforced = re.search(r'Unimplemented keys: \["(\w+)"', reason)
        keyword = unenforced[1] if unenforced else ""
        for name, schema in (self.schemas or {}).items():
            path = find_keyword(schema, keyword)
            if path is not None:
                full_name = f"{name}.{path}" if path else name
                return full_name, (
                    f"{full_name} can't be used: {keyword!r} can't be enforced in a strict tool: "
                    "leave it out, or set strict to false"
                )
        return self.field, f"{self.field} can't be used: {reason}"


def asked_constraint(
    response_format: ResponseFormat | None, structured_outputs: StructuredOutputs | None
) -> Constraint | None:
    """Return the constraint that one of these two fields asks for; None if neither is given."""
    if structured_outputs is not None:
        params = structured_outputs.params
        return Constraint(params, f"structured_outputs.{params.kind}")
    if response_format is None or response_format.type == "text":
        return None
    if response_format.json_schema is None:
        return Constraint(StructuredOutputsParams(json_object=True), "response_format")
    schema = StructuredOutputsParams(json=response_format.json_schema.json_schema)
    return Constraint(schema, "response_format.json_schema.schema")
