"""``response_format`` and ``structured_outputs``: what a request wants its output to match."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from minimal_vllm.sampling_params import StructuredOutputsParams
from minimal_vllm.server.api_model import ApiModel, without_nothings

StructuredOutputs = Annotated[StructuredOutputsParams, BeforeValidator(without_nothings)]
"""vLLM's object; of its options those are refused that the engine doesn't have."""


class JsonSchema(ApiModel):
    """The part of ``ResponseFormat`` that says which JSON."""

    name: str
    """For the client's own use, as is ``description``: the model sees neither."""
    description: str | None = None
    json_schema: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None
    """The output is held to the schema in any case."""


class ResponseFormat(ApiModel):
    """OpenAI's way to ask for JSON."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_and_type_agree(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema is for the type json_schema, which needs it")
        return self


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an output must match."""

    params: StructuredOutputsParams
    field: str
    """The request's field that asks for it, to be named if it can't be had."""


def asked_constraint(
    response_format: ResponseFormat | None, structured_outputs: StructuredOutputsParams | None
) -> Constraint | None:
    """What these two fields, of which one may be given, ask for."""
    if structured_outputs is not None:
        return Constraint(structured_outputs, f"structured_outputs.{structured_outputs.kind}")
    if response_format is None or response_format.type == "text":
        return None
    if response_format.json_schema is None:
        return Constraint(StructuredOutputsParams(json_object=True), "response_format")
    schema = StructuredOutputsParams(json=response_format.json_schema.json_schema)
    return Constraint(schema, "response_format.json_schema.schema")
