"""Tools that a request declares, in OpenAI's form."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from minimal_vllm.sampling.grammar_source import json_rule
from minimal_vllm.server.api_model import ApiModel, HistoryModel

FunctionName = Annotated[str, Field(min_length=1, max_length=256)]


class Function(HistoryModel):
    """Function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of the arguments, which are an object; None: the function takes none."""
    strict: bool | None = None
    """Hold calls to the schema even if the model makes them by itself, and refuse a schema that
    can't be enforced."""

    @field_validator("parameters")
    @classmethod
    def _arguments_are_an_object(cls, parameters: dict[str, Any] | None) -> dict[str, Any] | None:
        if parameters and parameters.get("type", "object") != "object":
            raise ValueError(
                f"arguments are an object: the type should be 'object', not {parameters['type']!r}"
            )
        return parameters

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """JSON schema of the arguments, which is an object in any case."""
        if self.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return {"type": "object", **self.parameters}

    @property
    def arguments_rule(self) -> str:
        """The rule of a grammar that matches the arguments; ``strict`` ones as the schema says.

        Others are held to as much of the schema as can be enforced.
        """
        return json_rule(self.schema_of_arguments, lenient=not self.strict)


class Tool(HistoryModel):
    """Tool; the only kind is a function."""

    type: Literal["function"]
    function: Function

    def as_dict(self) -> dict[str, Any]:
        """Return the tool as chat templates know it: as in vLLM, what is not given is None."""
        function = self.function
        described: dict[str, Any] = {
            "name": function.name,
            "description": function.description,
            "parameters": function.parameters,
        }
        if function.strict is not None:
            described["strict"] = function.strict
        return {"type": self.type, "function": described}


class FunctionReference(ApiModel):
    """Name of a function."""

    name: FunctionName


class NamedTool(ApiModel):
    """Tool that the model must call."""

    type: Literal["function"]
    function: FunctionReference


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("[word]")]
    | Annotated[NamedTool, Tag("[tool]")],
    Discriminator(lambda choice: "[word]" if isinstance(choice, str) else "[tool]"),
]
