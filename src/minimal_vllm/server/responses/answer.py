"""The answer of ``/v1/responses``: its models, and how it is written, whole or as a stream."""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from minimal_vllm.outputs import RequestOutput
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.server.chat.dialogue import Dialogue, MessageReaders
from minimal_vllm.server.chunks import event
from minimal_vllm.server.errors import ApiError
from minimal_vllm.server.generation import Answer, UsageCounter
from minimal_vllm.server.models import Usage
from minimal_vllm.server.responses.functions import declared_functions
from minimal_vllm.server.responses.output_items import (
    Event,
    OutputWriter,
    ReasoningOutput,
    ReasoningToSendBack,
)
from minimal_vllm.server.responses.request import ResponsesRequest
from minimal_vllm.server.service import Service


class InputTokensDetails(BaseModel):
    """Details of the prompt."""

    cached_tokens: int
    """Tokens that were found in the prefix cache, and so not computed."""
    cache_write_tokens: int
    """Tokens that OpenAI charges for writing to its cache: none."""


class OutputTokensDetails(BaseModel):
    """Details of the answer."""

    reasoning_tokens: int


class ResponseUsage(BaseModel):
    """Numbers of tokens."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(BaseModel):
    """Reason why an answer is incomplete."""

    reason: Literal["max_output_tokens"]


class ResponseError(BaseModel):
    """Error of an answer that failed."""

    code: str
    message: str


class ResponseObject(BaseModel):
    """The answer of ``/v1/responses``: its output, and the request's fields."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    model: str
    output: list[dict[str, Any]]
    """Items of the types ``message``, ``function_call`` and ``reasoning``."""
    usage: ResponseUsage | None
    instructions: str | None
    metadata: dict[str, Any]
    max_output_tokens: int | None
    temperature: float
    top_p: float
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    text: dict[str, Any]
    reasoning: dict[str, Any]
    truncation: Literal["disabled"]
    background: bool
    previous_response_id: None
    store: bool


class ResponsesAnswer(Answer):
    """One answer of the assistant, as the items that it consists of.

    Args:
        service: the model that answers.
        response_id: the id of the answer.
        body: the request.
        dialogue: says how the model's text is read.
        params: sampling parameters of the answer.
    """

    def __init__(
        self,
        service: Service,
        response_id: str,
        body: ResponsesRequest,
        dialogue: Dialogue,
        params: SamplingParams,
    ) -> None:
        super().__init__(service, response_id, body.model)
        self._about_request = _about_request(body, params)
        self._messages = MessageReaders(dialogue, service.model.tokenizer.token_bytes)
        self._writer = OutputWriter(
            [path for path, _ in declared_functions(body.tools or ())],
            ReasoningToSendBack if body.wants_opaque_reasoning else ReasoningOutput,
        )
        self._number = -1
        self._has_begun = False
        self._is_cut_off = False

    def count_reasoning(self, index: int, output: RequestOutput) -> int:
        """Return the number of reasoning tokens in the new output."""
        return self._messages.count_reasoning(index, output.outputs[0])

    def whole(self, outputs: Sequence[RequestOutput], usage: Usage) -> ResponseObject:
        """Return the whole answer."""
        for _ in self._read(outputs[0]):
            pass
        return ResponseObject.model_validate(self._final_response(usage))

    def events(self, index: int, output: RequestOutput, usage: UsageCounter) -> Iterable[bytes]:  # noqa: ARG002
        """Yield the events for new output of the engine."""
        if not self._has_begun:
            self._has_begun = True
            yield self._send({"type": "response.created", "response": self._response()})
            yield self._send({"type": "response.in_progress", "response": self._response()})
        for each in self._read(output):
            yield self._send(each)

    def last_events(self, usage: Usage) -> Iterable[bytes]:
        """Yield the event with the whole answer."""
        response = self._final_response(usage)
        yield self._send({"type": f"response.{response['status']}", "response": response})

    def error_events(self, error: ApiError) -> Iterable[bytes]:
        """Yield the error, and the event that ends a failed answer."""
        detail = error.body.error
        code = detail.code or detail.type
        yield self._send(
            {"type": "error", "code": code, "message": detail.message, "param": detail.param}
        )
        failed = {
            **self._response(),
            "status": "failed",
            "error": {"code": code, "message": detail.message},
        }
        yield self._send({"type": "response.failed", "response": failed})

    def _read(self, output: RequestOutput) -> Iterator[Event]:
        (completion,) = output.outputs
        yield from self._writer.write(self._messages.read(0, completion))
        if completion.finish_reason is not None:
            self._is_cut_off = completion.finish_reason == "length"
            yield from self._writer.finish("incomplete" if self._is_cut_off else "completed")

    def _send(self, fields: Event) -> bytes:
        self._number += 1
        return event({**fields, "sequence_number": self._number}, fields["type"])

    def _response(self) -> dict[str, Any]:
        """Return the answer as far as it is written."""
        return {
            "id": self.response_id,
            "object": "response",
            "created_at": self.envelope["created"],
            "completed_at": None,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": self.envelope["model"],
            "output": self._writer.output,
            "usage": None,
            **self._about_request,
        }

    def _final_response(self, usage: Usage) -> dict[str, Any]:
        incomplete = {"reason": "max_output_tokens"} if self._is_cut_off else None
        return {
            **self._response(),
            "completed_at": None if self._is_cut_off else int(time.time()),
            "status": "incomplete" if self._is_cut_off else "completed",
            "incomplete_details": incomplete,
            "usage": _usage(usage),
        }


def _about_request(body: ResponsesRequest, params: SamplingParams) -> dict[str, Any]:
    """Return the fields of an answer that repeat those of its request."""
    given = body.model_dump(
        mode="json",
        by_alias=True,
        exclude_unset=True,
        include={"tools", "tool_choice", "text", "reasoning"},
    )
    return {
        "instructions": body.instructions,
        "metadata": body.metadata if isinstance(body.metadata, dict) else {},
        "max_output_tokens": body.max_output_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "tools": given.get("tools") or [],
        "tool_choice": given.get("tool_choice") or "auto",
        "parallel_tool_calls": body.parallel_tool_calls,
        "text": {"format": {"type": "text"}, **(given.get("text") or {})},
        "reasoning": {"effort": None, "summary": None, **(given.get("reasoning") or {})},
        "truncation": "disabled",
        "background": False,
        "previous_response_id": None,
        "store": False,
    }


def _usage(usage: Usage) -> dict[str, Any]:
    reasoning_tokens = usage.completion_tokens_details.reasoning_tokens
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.prompt_tokens_details.cached_tokens,
            "cache_write_tokens": 0,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
