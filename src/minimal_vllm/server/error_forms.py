"""The two forms of an error's body: OpenAI's, and Anthropic's for its API."""

from typing import Literal

from pydantic import BaseModel

ANTHROPIC_PATH = "/v1/messages"
"""Beginning of the paths whose errors have Anthropic's form."""

OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}
"""OpenAI's error types by status; all others are ``invalid_request_error``."""

ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}
"""Anthropic's error types by status; all others are ``invalid_request_error``."""


class ErrorDetail(BaseModel):
    """Description of an error, and the field that it is about."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of an error."""

    error: ErrorDetail

    @classmethod
    def of(
        cls, status: int, message: str, param: str | None = None, code: str | None = None
    ) -> "ErrorBody":
        """Return the body for an HTTP status, a message, and OpenAI's further fields."""
        kind = OPENAI_TYPES.get(status, "invalid_request_error")
        return cls(error=ErrorDetail(message=message, type=kind, param=param, code=code))


class AnthropicErrorDetail(BaseModel):
    """Description of an error. The message begins with the field that it is about."""

    type: str
    message: str


class AnthropicErrorBody(BaseModel):
    """The body of an error of ``/v1/messages``."""

    type: Literal["error"]
    error: AnthropicErrorDetail

    @classmethod
    def of(cls, status: int, message: str, code: str | None) -> "AnthropicErrorBody":
        """Return the body for an HTTP status, a message, and OpenAI's code."""
        if code == "context_length_exceeded":  # Claude Code looks for this wording
            message = f"prompt is too long: {message}"
        kind = ANTHROPIC_TYPES.get(status, "invalid_request_error")
        return cls(type="error", error=AnthropicErrorDetail(type=kind, message=message))
