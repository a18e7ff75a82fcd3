"""Errors in OpenAI's body, each naming the field that it is about."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.server.async_engine import (
    EngineFailedError,
    EngineStoppedError,
    RequestRefusedError,
)
from minimal_vllm.settings import SettingsError

ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}
"""OpenAI's names; all others are ``invalid_request_error``."""

SAMPLING_FIELDS = frozenset(field.name for field in fields(SamplingParams))

UNION_TAGS = frozenset({"str", "constrained-str"})
"""What pydantic puts into an error's location for the members of a union; others have brackets."""

UNSUPPORTED = frozenset({"extra_forbidden", "unexpected_keyword_argument"})
"""Pydantic's names for the same, of models and of dataclasses."""

LONGEST_INPUT = 100

ENGINE_ERRORS = (RequestRefusedError, EngineStoppedError, EngineFailedError)
"""What the engine may say of a request."""


class ErrorDetail(BaseModel):
    """What went wrong, and the field that it is about."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetail


class ApiError(HTTPException):
    """Ends a request with this status and OpenAI's error body."""

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

    @property
    def body(self) -> ErrorBody:
        """What the client gets."""
        kind = ERROR_TYPES.get(self.status_code, "invalid_request_error")
        return ErrorBody(
            error=ErrorDetail(message=self.detail, type=kind, param=self.param, code=self.code)
        )

    @property
    def response(self) -> JSONResponse:
        """The whole HTTP response."""
        return JSONResponse(self.body.model_dump(), self.status_code, self.headers)

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it from a middleware, and leave the reason for the log."""
        scope["state"]["error"] = self.detail
        await self.response(scope, receive, send)


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of any error; of one that nobody foresaw, nothing."""
    match error:
        case ApiError():
            return error
        case RequestValidationError() | ValidationError() | SettingsError():
            return _from_validation(error.errors())
        case HTTPException(status_code=400, __cause__=Exception() as cause):  # FastAPI's reader
            return ApiError(400, f"the body can't be read as JSON: {cause}")
        case HTTPException():
            return ApiError(error.status_code, error.detail, headers=error.headers)
        case RequestRefusedError():
            subject = str(error).partition(" ")[0]  # the engine begins with the field's name
            return ApiError(400, str(error), param=subject if subject in SAMPLING_FIELDS else None)
        case EngineStoppedError():
            return ApiError(503, str(error), headers={"Retry-After": "1"})
        case EngineFailedError():
            return ApiError(500, str(error))
    return ApiError(500, "internal server error: the server's log says more")


def _from_validation(errors: Sequence[Any]) -> ApiError:
    """The complaints about the first field that has any.

    A union has some for each of its members: those that got furthest are the likeliest meant.
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
    """Where an error is, without what only pydantic knows: the members of unions, or an offset."""
    loc = error["loc"]
    inside = loc[1:] if loc[:1] == ("body",) else loc
    if error["type"] == "json_invalid":
        return []
    if error["type"] == "extra_forbidden":  # its last part is whatever the client wrote
        return [*map(str, filter(_is_name, inside[:-1])), str(inside[-1])]
    return [str(each) for each in inside if _is_name(each)]


def _is_name(part: int | str) -> bool:
    return part not in UNION_TAGS and not (isinstance(part, str) and part.endswith("]"))


def _complaint(details: Mapping[str, Any]) -> str:
    match details["type"]:
        case kind if kind in UNSUPPORTED:
            return "not supported here"
        case "missing" | "model_attributes_type" | "model_type" if not _names(details):
            return "the body should be a JSON object, sent as application/json"
        case "missing":
            return "missing"
        case "json_invalid":
            place = details["loc"][-1]
            return f"the body is not valid JSON at character {place}: {details['ctx']['error']}"
        case "model_attributes_type" | "model_type":
            return "should be a JSON object"
        case "value_error":
            return str(details["msg"]).removeprefix("Value error, ")
    message = str(details["msg"]).removeprefix("Input ")
    given = repr(details["input"])
    if len(given) > LONGEST_INPUT:
        given = f"{given[:LONGEST_INPUT]}…"
    return message if ", not " in message else f"{message}, not {given}"


def add_error_handlers(app: FastAPI) -> None:
    """Let the foreseen errors of all routes end in OpenAI's body."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        api_error = as_api_error(error)
        request.state.error = api_error.detail
        return api_error.response

    for kind in (HTTPException, RequestValidationError, *ENGINE_ERRORS):
        app.add_exception_handler(kind, handle)
