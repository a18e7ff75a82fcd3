"""Answering the errors of all routes. An engine's process, which has none, needs no FastAPI."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from minimal_vllm.server.errors import (
    ENGINE_ERRORS,
    LONGEST_INPUT,
    ApiError,
    as_api_error,
    from_validation,
)


def _describe_endpoints(app: FastAPI, path: str) -> str:
    paths: dict[str, dict[str, Any]] = app.openapi()["paths"]
    known = [f"{method.upper()} {each}" for each in paths for method in paths[each]]
    return f"there is no {path[:LONGEST_INPUT]}: this server has {', '.join(known)}"


def add_error_handlers(app: FastAPI) -> None:
    """Answer the expected errors of all routes with an error body."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, RequestValidationError):
            api_error = from_validation(error.errors())
        else:
            api_error = as_api_error(error)
        if api_error.status_code == 404 and not isinstance(error, ApiError):
            api_error = ApiError(404, _describe_endpoints(app, request.url.path))
        request.state.error = api_error.detail
        return api_error.response(request.url.path)

    for kind in (HTTPException, RequestValidationError, *ENGINE_ERRORS):
        app.add_exception_handler(kind, handle)
