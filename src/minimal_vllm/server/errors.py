"""Errors of requests, each with the name of the field that is wrong."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.server.engine_client import (
    EngineFailedError,
    EngineStoppedError,
    RequestRefusedError,
)
from minimal_vllm.server.error_forms import ANTHROPIC_PATH, AnthropicErrorBody, ErrorBody
from minimal_vllm.settings import SettingsError

ENGINE_FIELDS = frozenset({field.name for field in fields(SamplingParams)} | {"prompt_token_ids"})
"""Names with which the engine's complaints may begin."""

UNION_TAGS = frozenset({"str", "constrained-str"})
"""Names of union members in the location of a pydantic error; others' names have brackets."""

UNSUPPORTED = frozenset({"extra_forbidden", "unexpected_keyword_argument", "unsupported_field"})
"""Types of pydantic errors about unknown fields of models and of dataclasses, and that of
``OnlyDefault``."""

LONGEST_INPUT = 100

ENGINE_ERRORS = (RequestRefusedError, EngineStoppedError, EngineFailedError)
"""Errors that the engine raises for a request."""


class ApiError(HTTPException):
    """Error that ends a request with a status and the error body of its API."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.param = param
        self.code = code

    def renamed(self, rename: Callable[[str], str]) -> "ApiError":
        """Return the same error about the field that the client knows by another name."""
        if self.param is None:
            return self
        old, dot, rest = self.param.partition(".")
        new = rename(old)
        message = self.detail
        if message.startswith(old):
            message = new + message.removeprefix(old)
        return ApiError(
            self.status_code, message, param=new + dot + rest, code=self.code, headers=self.headers
        )

    @property
    def body(self) -> ErrorBody:
        """The error in OpenAI's form."""
        return ErrorBody.of(self.status_code, self.detail, self.param, self.code)

    def response(self, path: str) -> JSONResponse:
        """Return the whole HTTP response to a request for this path, in the form of its API."""
        body: BaseModel = self.body
        if path.startswith(ANTHROPIC_PATH):
            body = AnthropicErrorBody.of(self.status_code, self.detail, self.code)
        return JSONResponse(body.model_dump(), self.status_code, self.headers)

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response from a middleware, and store the message for the log."""
        scope["state"]["error"] = self.detail
        await self.response(scope["path"])(scope, receive, send)


def as_api_error(error: Exception) -> ApiError:
    """Return the error that a client gets for an exception; unexpected ones stay in the log."""
    match error:
        case ApiError():
            return error
        case HTTPException(__cause__=ApiError() as cause):  # raised while FastAPI read the body
            return cause
        case ValidationError() | SettingsError():
            return from_validation(error.errors())
        case HTTPException(status_code=400, __cause__=Exception() as cause):  # FastAPI's reader
            return ApiError(400, f"the body can't be read as JSON: {cause}")
        case HTTPException():
            return ApiError(error.status_code, error.detail, headers=error.headers)
        case RequestRefusedError():
            subject = str(error).partition(" ")[0]  # the engine begins with the field's name
            return ApiError(400, str(error), param=subject if subject in ENGINE_FIELDS else None)
        case EngineStoppedError():
            return ApiError(503, str(error), headers={"Retry-After": "1"})
        case EngineFailedError():
            return ApiError(500, str(error))
    return ApiError(500, "internal server error: the server's log says more")


def from_validation(errors: Sequence[Any]) -> ApiError:
    """Return one error for the first field that is wrong.

    A union has errors for each of its members. Those with the longest location are chosen, since
    the client most likely meant that member.
    """
    names = [_names(each) for each in errors]
    about_first = [each for each in names if each[:1] == names[0][:1]]
    chosen = max(about_first, key=len)
    found = [each for each, name in zip(errors, names, strict=True) if name == chosen]
    complaints = ", or ".join(dict.fromkeys(map(_complaint, found)))
    param = ".".join(chosen) or None
    unsupported = found[0]["type"] in UNSUPPORTED
    return ApiError(
        400,
        f"{param}: {complaints}" if param else complaints,
        param=param,
        code="unsupported_parameter" if unsupported else None,
    )


def _names(error: Mapping[str, Any]) -> list[str]:
    """Return the location of an error without pydantic's own parts: union members and offsets."""
    loc = error["loc"]
    inside = loc[1:] if loc[:1] == ("body",) else loc
    if error["type"] == "json_invalid":
        return []
    if error["type"] == "field_error":
        inside = (*inside, error["ctx"]["field"])
    if error["type"] == "extra_forbidden":  # its last part is whatever the client wrote
        return [*map(str, filter(_is_name, inside[:-1])), str(inside[-1])]
    return [str(each) for each in inside if _is_name(each)]


def _is_name(part: int | str) -> bool:
    return part not in UNION_TAGS and not (isinstance(part, str) and part.endswith("]"))


def _complaint(details: Mapping[str, Any]) -> str:
    match details["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            return "not supported here"
        case "missing" | "model_attributes_type" | "model_type" if not _names(details):
            return "the body should be a JSON object, sent as application/json"
        case "missing":
            return "missing"
        case "json_invalid":
            position = details["loc"][-1]
            return f"the body is not valid JSON at character {position}: {details['ctx']['error']}"
        case "model_attributes_type" | "model_type":
            return "should be a JSON object"
        case "unsupported_field" | "field_error":
            return str(details["msg"])
        case "value_error":
            return str(details["msg"]).removeprefix("Value error, ")
    message = str(details["msg"]).removeprefix("Input ")
    given = repr(details["input"])
    if len(given) > LONGEST_INPUT:
        given = f"{given[:LONGEST_INPUT]}…"
    return message if ", not " in message else f"{message}, not {given}"
