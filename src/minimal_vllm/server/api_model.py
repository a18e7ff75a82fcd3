"""The base of all JSON objects in requests, and the classes of fields that they declare.

A field's declaration says what the server does with it:

- A plain field does what its docstring says.
- ``Bookkeeping`` can't change the text of the answer. It is accepted and written to the log.
- ``TemplateHint[T]`` is passed to the chat template under the field's name.
- ``OnlyDefault[T]`` belongs to a feature that this server doesn't have. It is accepted where it
  asks for nothing: if it is null, empty, or equal to its default. Any other value is refused.

A field that isn't declared is refused, so that a misspelt name is an error; ``HistoryModel``, for
what comes back from earlier answers, drops it instead. A null is the same as a missing field.
"""

from collections.abc import Iterator
from enum import Enum, auto
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

MAX_FIELDS = 100
"""Maximum number of fields of one object: each unknown one costs an error."""

T = TypeVar("T")


class FieldClass(Enum):
    """Classes of fields, apart from plain ones."""

    BOOKKEEPING = auto()
    TEMPLATE_HINT = auto()
    ONLY_DEFAULT = auto()


def field_error(field: str, message: str) -> PydanticCustomError:
    """Return an error about one field of the object that is being validated.

    Args:
        field: name of the field, which becomes the error's ``param``.
        message: what is wrong with it.
    """
    return PydanticCustomError("field_error", "{message}", {"message": message, "field": field})


def refuse_with(reason: str) -> BeforeValidator:
    """Return a validator for a field that asks for something this server doesn't have.

    Args:
        reason: the error's message.
    """

    def refuse(_: Any) -> Any:
        raise PydanticCustomError("unsupported_field", "{reason}", {"reason": reason})

    return BeforeValidator(refuse)


Bookkeeping = Annotated[Any, FieldClass.BOOKKEEPING]
TemplateHint = Annotated[T | None, FieldClass.TEMPLATE_HINT]
OnlyDefault = Annotated[T | None, FieldClass.ONLY_DEFAULT, refuse_with("not supported here")]


class ApiModel(BaseModel):
    """A JSON object in which nothing is ignored."""

    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, populate_by_name=False
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_what_asks_for_nothing(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if len(data) > MAX_FIELDS:
            raise ValueError(f"{len(data)} fields are too many: at most {MAX_FIELDS} are read")
        return {name: value for name, value in data.items() if not cls._asks_nothing(name, value)}

    @classmethod
    def _asks_nothing(cls, name: str, value: Any) -> bool:
        field = cls.model_fields.get(name)
        if value is None or field is None or FieldClass.ONLY_DEFAULT not in field.metadata:
            return value is None
        is_empty = isinstance(value, str | list | dict) and not value
        is_default = value == field.default and isinstance(value, bool) == isinstance(
            field.default, bool
        )
        return is_empty or is_default

    @classmethod
    def names_of_class(cls, field_class: FieldClass) -> list[str]:
        """Return the names of the fields of one class."""
        return [name for name, field in cls.model_fields.items() if field_class in field.metadata]

    def given(self, field_class: FieldClass) -> dict[str, Any]:
        """Return the fields of one class that the request sets, with their values."""
        names = self.names_of_class(field_class)
        return {name: getattr(self, name) for name in names if name in self.model_fields_set}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Describe an ``OnlyDefault`` field by the values that it may have."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        for name in cls.names_of_class(FieldClass.ONLY_DEFAULT):
            default = cls.model_fields[name].default
            schema["properties"][name] = {
                "enum": [default, None] if default is not None else [None]
            }
        return schema


class HistoryModel(ApiModel):
    """A JSON object that an earlier answer may hold: keys that it doesn't declare are dropped."""

    model_config = ConfigDict(extra="allow")


def dropped_keys(model: BaseModel, path: str = "") -> Iterator[str]:
    """Yield the paths of the keys that the ``HistoryModel``s in a request don't declare.

    Elements of a list share one path: ``messages.tool_calls.index``.
    """
    yield from (f"{path}{name}" for name in model.model_extra or ())
    for name in type(model).model_fields:
        value = getattr(model, name)
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, BaseModel):
                yield from dropped_keys(each, f"{path}{name}.")
