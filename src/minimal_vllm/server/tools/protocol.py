"""Tools and calls in OpenAI's shape, as requests have them."""

import json
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from minimal_vllm.server.api_model import ApiModel

FunctionName = Annotated[str, Field(min_length=1, max_length=256)]


class Function(ApiModel):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """The JSON schema of the arguments, an object; None: the function takes none."""
    strict: bool | None = None
    """Hold calls that the model makes by itself to the schema; others are in any case."""

    @field_validator("parameters")
    @classmethod
    def _arguments_are_an_object(cls, parameters: dict[str, Any] | None) -> dict[str, Any] | None:
        if parameters and parameters.get("type", "object") != "object":
            raise ValueError(f"arguments are an object, not of type {parameters['type']!r}")
        return parameters

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """What the arguments are held to."""
        if self.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return {"type": "object", **self.parameters}


class Tool(ApiModel):
    """There are no others than functions."""

    type: Literal["function"]
    function: Function


class FunctionReference(ApiModel):
    """A function, by its name."""

    name: FunctionName


class NamedTool(ApiModel):
    """The one tool that the model must call."""

    type: Literal["function"]
    function: FunctionReference


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("[word]")]
    | Annotated[NamedTool, Tag("[tool]")],
    Discriminator(lambda choice: "[word]" if isinstance(choice, str) else "[tool]"),
]


class FunctionCall(ApiModel):
    """A call that the assistant made."""

    name: FunctionName
    arguments: str
    """JSON."""

    @field_validator("arguments")
    @classmethod
    def _arguments_are_json(cls, arguments: str) -> str:
        try:
            parsed = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON: {error}") from error
        if not isinstance(parsed, dict):
            raise ValueError("the JSON of an object is expected")
        return arguments


class ToolCall(ApiModel):
    """A call that the assistant made, and the id by which its result refers to it."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
