"""Running requests, and writing their outputs as an HTTP response or a stream of events."""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from minimal_vllm.outputs import RequestOutput
from minimal_vllm.server.engine_client import EngineRequest, RequestRefusedError
from minimal_vllm.server.errors import ENGINE_ERRORS, ApiError, as_api_error
from minimal_vllm.server.models import (
    CompletionTokensDetails,
    PromptTokensDetails,
    SamplingFields,
    Usage,
)
from minimal_vllm.server.service import Service

logger = logging.getLogger(__name__)

EVENT_SCHEMA = {
    "type": "object",
    "properties": {
        "data": {
            "type": "string",
            "description": "JSON like that of the whole answer, with what is new; [DONE] at last",
        }
    },
    "required": ["data"],
}
STREAM_TOO: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": EVENT_SCHEMA}}}
}
"""Part of a route's OpenAPI description: its answer may be a stream of events."""

Outputs = AsyncGenerator[tuple[int, RequestOutput], None]


class UsageCounter:
    """Counts the tokens of one HTTP request.

    Args:
        requests: its engine requests.
        n: number of consecutive requests that have the same prompt.
    """

    def __init__(self, requests: Sequence[EngineRequest], n: int) -> None:
        self._n = n
        self._prompt = sum(len(request.prompt_token_ids) for request in requests[::n])
        self._completion = 0
        self._reasoning = 0
        self._cached: dict[int, int] = {}

    def add(self, index: int, output: RequestOutput, num_reasoning: int = 0) -> None:
        """Take in new output of the request at ``index``, with its number of reasoning tokens."""
        self._completion += len(output.outputs[0].token_ids)
        self._reasoning += num_reasoning
        if index % self._n == 0:  # the others share the blocks that this one computed
            self._cached[index] = output.num_cached_tokens

    @property
    def usage(self) -> Usage:
        """Usage so far."""
        return Usage(
            prompt_tokens=self._prompt,
            completion_tokens=self._completion,
            total_tokens=self._prompt + self._completion,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(self._cached.values())),
            completion_tokens_details=CompletionTokensDetails(reasoning_tokens=self._reasoning),
        )


class Answer(ABC):
    """Writes what the engine generates as one endpoint's answer.

    A choice is known by its index among the answer's choices.

    Attributes:
        response_id: id of the answer.
        envelope: fields that the answer and all its chunks have.
    """

    def __init__(self, service: Service, response_id: str, model: str | None) -> None:
        self.response_id = response_id
        self.envelope: dict[str, Any] = {
            "id": response_id,
            "created": int(time.time()),
            "model": model or service.model_names[0],
        }

    def adapt(self, output: RequestOutput) -> RequestOutput:
        """Return the part of an output that the client asked for."""
        return output

    def count_reasoning(self, index: int, output: RequestOutput) -> int:  # noqa: ARG002
        """Return the number of reasoning tokens in the new output of one choice."""
        return 0

    @abstractmethod
    def whole(self, outputs: Sequence[RequestOutput], usage: Usage) -> BaseModel:
        """Return the whole answer, from the final outputs of all choices."""

    @abstractmethod
    def events(self, index: int, output: RequestOutput, usage: UsageCounter) -> Iterable[bytes]:
        """Return a stream's events for the new output of one choice; there may be none."""

    @abstractmethod
    def last_events(self, usage: Usage) -> Iterable[bytes]:
        """Return the events that end a stream in which nothing failed."""

    @abstractmethod
    def error_events(self, error: ApiError) -> Iterable[bytes]:
        """Return the events that end a stream after an error."""


def new_id(prefix: str, request: Request, chosen: str | None) -> str:
    """Return the id of an answer, from what the client chose, or else from the HTTP request's."""
    return f"{prefix}-{chosen or request.state.request_id}"


async def respond(
    service: Service,
    body: SamplingFields,
    requests: Sequence[EngineRequest],
    n: int,
    answer: Answer,
) -> Response:
    """Run the requests, and return the answer, whole or as a stream.

    The status of a stream is sent with its first tokens: an error before them has its own status.

    Args:
        service: the model that is served.
        body: the client's request.
        requests: one engine request for each choice.
        n: number of consecutive requests that have the same prompt.
        answer: writes the endpoint's answer.
    """
    service.check_load()
    usage = UsageCounter(requests, n)
    headers = {"X-Request-Id": answer.response_id}
    outputs = _run(service, requests, usage, answer, body)
    if body.stream:
        first = await anext(outputs)
        return EventStream(first, outputs, answer, usage, headers)
    async with aclosing(outputs):
        final = {index: output async for index, output in outputs}

    def write() -> str:
        whole = answer.whole([final[index] for index in range(len(requests))], usage.usage)
        return whole.model_dump_json()

    # In another thread, because log-probabilities of long prompts are megabytes.
    content = await asyncio.to_thread(write)
    return Response(content, headers=headers, media_type="application/json")


async def _run(
    service: Service,
    requests: Sequence[EngineRequest],
    usage: UsageCounter,
    answer: Answer,
    body: SamplingFields,
) -> Outputs:
    """Yield the engine's outputs, counted, and write a line to the log at their end."""
    summary = _Summary(answer.response_id, body, usage)
    num_finished = 0
    try:
        async with aclosing(service.engine.generate(requests, summary.note_aborted)) as outputs:
            async for index, each in outputs:
                output = answer.adapt(each)
                usage.add(index, output, answer.count_reasoning(index, output))
                if output.finished:
                    num_finished += 1
                    summary.reasons.append(str(output.outputs[0].finish_reason))
                yield index, output
    except RequestRefusedError as error:
        refusal = as_api_error(error).renamed(body.client_field)
        summary.write(f"RequestRefusedError: {refusal.detail}")
        raise refusal from error
    except Exception as error:
        summary.write(f"{type(error).__name__}: {error}")
        raise
    finally:
        if num_finished == len(requests):
            summary.write(",".join(summary.reasons))
        elif service.engine.refusal is not None:  # nothing may be aborted any more
            summary.write(CLIENT_WENT_AWAY)


CLIENT_WENT_AWAY = "the client went away"


class _Summary:
    """The line in the log that a request ends with; it is written once."""

    def __init__(self, response_id: str, body: SamplingFields, usage: UsageCounter) -> None:
        self.reasons: list[str] = []
        self._response_id = response_id
        self._body = body
        self._usage = usage
        self._begun = time.monotonic()
        self._is_written = False

    def note_aborted(self, outputs: Sequence[tuple[int, RequestOutput]]) -> None:
        """Count what had been generated when the client went away, and write the line."""
        for index, output in outputs:
            self._usage.add(index, output)
        self.write(CLIENT_WENT_AWAY)

    def write(self, ending: str) -> None:
        """Write the line, unless it is written already."""
        if self._is_written:
            return
        self._is_written = True
        total = self._usage.usage
        logger.info(
            "request_id=%s user=%.100r%s prompt_tokens=%d cached_tokens=%d completion_tokens=%d "
            "seconds=%.3f end=%r",
            self._response_id,
            self._body.user,
            _bookkeeping(self._body),
            total.prompt_tokens,
            total.prompt_tokens_details.cached_tokens,
            total.completion_tokens,
            time.monotonic() - self._begun,
            ending,
        )


def _bookkeeping(body: SamplingFields) -> str:
    """Return the request's other notes for the log, if it has any."""
    notes = {name: value for name, value in body.bookkeeping.items() if name != "user"}
    return f" bookkeeping={notes!r:.300}" if notes else ""


class EventStream(StreamingResponse):
    """Response of server-sent events.

    Args:
        first: the engine's first output.
        others: its other outputs; closed when the response ends, for whatever reason.
        answer: makes events of outputs.
        usage: counts the tokens of the outputs.
        headers: headers of the response.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        first: tuple[int, RequestOutput],
        others: Outputs,
        answer: Answer,
        usage: UsageCounter,
        headers: dict[str, str],
    ) -> None:
        super().__init__((), headers={"Cache-Control": "no-cache", **headers})
        self._first = first
        self._others = others
        self._answer = answer
        self._usage = usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the events, and close the outputs.

        Starlette would look out for a disconnect in another task, but ``CancelOnDisconnect`` does.
        It would also take the events from a generator, which would add to the cost of each.
        """
        head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        async with aclosing(self._others):
            await send(head)
            try:
                await self._send_outputs(send)
                last = b"".join(self._answer.last_events(self._usage.usage))
            except Exception as error:
                if not isinstance(error, (ApiError, *ENGINE_ERRORS)):
                    logger.exception("request_id=%s: the stream failed", self._answer.response_id)
                last = b"".join(self._answer.error_events(as_api_error(error)))
            await send({"type": "http.response.body", "body": last})

    async def _send_outputs(self, send: Send) -> None:
        """Send the events of each output in one piece, as soon as it is there."""
        await self._send_output(send, *self._first)
        async for index, output in self._others:
            await self._send_output(send, index, output)

    async def _send_output(self, send: Send, index: int, output: RequestOutput) -> None:
        events = b"".join(self._answer.events(index, output, self._usage))
        if events:
            await send({"type": "http.response.body", "body": events, "more_body": True})
