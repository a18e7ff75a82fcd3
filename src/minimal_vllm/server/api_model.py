"""JSON objects of requests, in which nothing is ignored.

``null`` is the same as absence, as in OpenAI's API, and so are the values in ``WITHOUT_EFFECT``,
which ask for what happens anyway.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tools": ([],),
    "annotations": ([],),
    "disable_additional_properties": (False,),
    "disable_fallback": (False,),
}
"""Fields that the server doesn't have, and lists that may be empty, with the values that change
nothing."""

MAX_FIELDS = 100
"""Of one object: each one that is unknown costs an error."""


def without_nothings(data: Any) -> Any:
    """A JSON object without the fields that ask for nothing; anything else as it is."""
    if not isinstance(data, dict):
        return data
    return {
        name: value
        for name, value in data.items()
        if value is not None and value not in WITHOUT_EFFECT.get(name, ())
    }


class ApiModel(BaseModel):
    """A JSON object in which nothing is ignored."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_what_asks_for_nothing(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > MAX_FIELDS:
            raise ValueError(f"{len(data)} fields are too many: at most {MAX_FIELDS} are read")
        return without_nothings(data)
