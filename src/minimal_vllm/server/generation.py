"""From requests to the engine to an HTTP response, whole or as a stream of events."""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from minimal_vllm.outputs import RequestOutput
from minimal_vllm.server.async_engine import EngineRequest
from minimal_vllm.server.errors import ENGINE_ERRORS, as_api_error
from minimal_vllm.server.protocol import SamplingFields, StreamOptions
from minimal_vllm.server.responses import PromptTokensDetails, Usage
from minimal_vllm.server.service import Service

logger = logging.getLogger(__name__)

EVENT = {
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
    200: {"content": {"text/event-stream": {"schema": EVENT}}}
}
"""For a route's OpenAPI description: its answer may be a stream of events."""

Outputs = AsyncGenerator[tuple[int, RequestOutput], None]


class UsageCounter:
    """Adds up what a request takes.

    Args:
        requests: all of it.
        n: how many of them, in a row, have the same prompt.
    """

    def __init__(self, requests: Sequence[EngineRequest], n: int) -> None:
        self._n = n
        self._prompt = sum(len(request.prompt_token_ids) for request in requests[::n])
        self._completion = 0
        self._cached: dict[int, int] = {}

    def add(self, place: int, output: RequestOutput) -> None:
        """Take in new output of a request."""
        self._completion += len(output.outputs[0].token_ids)
        if place % self._n == 0:  # the others share the blocks that this one computed
            self._cached[place] = output.num_cached_tokens

    @property
    def usage(self) -> Usage:
        """What was taken so far."""
        return Usage(
            prompt_tokens=self._prompt,
            completion_tokens=self._completion,
            total_tokens=self._prompt + self._completion,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(self._cached.values())),
        )


class Answer(ABC):
    """How an endpoint writes what the engine gives. A choice is known by its place.

    Attributes:
        chunk_object: what a chunk of a stream is called.
        response_id: of the answer.
        envelope: the fields that the answer and all its chunks have.
    """

    chunk_object: str

    def __init__(self, service: Service, response_id: str, model: str | None) -> None:
        self.response_id = response_id
        self.envelope: dict[str, Any] = {
            "id": response_id,
            "created": int(time.time()),
            "model": model or service.model_names[0],
        }

    def adapt(self, output: RequestOutput) -> RequestOutput:
        """What counts of an output."""
        return output

    @abstractmethod
    def whole(self, outputs: Sequence[RequestOutput], usage: Usage) -> BaseModel:
        """The whole answer, from the final outputs of all choices."""

    @abstractmethod
    def chunks(self, place: int, output: RequestOutput) -> list[dict[str, Any]]:
        """What a stream says of one choice's new output, beside the envelope; may be nothing."""

    def chunk(self, fields: dict[str, Any]) -> dict[str, Any]:
        """A chunk of a stream: the envelope and these fields.

        There is one for each token: to build and to check a model of it would take ten times as
        long as to write it.
        """
        return {**self.envelope, "object": self.chunk_object, **fields}


def new_id(prefix: str, request: Request, chosen: str | None) -> str:
    """The id of an answer: the HTTP request's, or what the client chose."""
    return f"{prefix}-{chosen or request.state.request_id}"


async def respond(
    service: Service,
    body: SamplingFields,
    requests: Sequence[EngineRequest],
    n: int,
    answer: Answer,
) -> Response:
    """Run the requests, and write the answer as the client wants it.

    A stream's status is sent with its first tokens: what fails before them has its true one.

    Args:
        service: runs them.
        body: what the client sent.
        requests: one for each choice.
        n: how many of them, in a row, have the same prompt.
        answer: the endpoint's.
    """
    service.check_load()
    usage = UsageCounter(requests, n)
    headers = {"X-Request-Id": answer.response_id}
    outputs = _run(service, requests, usage, answer, body.user)
    if body.stream:
        first = await anext(outputs)
        options = body.stream_options or StreamOptions()
        return EventStream(outputs, _events(first, outputs, answer, usage, options), headers)
    async with aclosing(outputs):
        final = {place: output async for place, output in outputs}

    def write() -> str:
        whole = answer.whole([final[place] for place in range(len(requests))], usage.usage)
        return whole.model_dump_json(exclude_unset=True)

    # In another thread: log-probabilities of long prompts are megabytes.
    content = await asyncio.to_thread(write)
    return Response(content, headers=headers, media_type="application/json")


async def _run(
    service: Service,
    requests: Sequence[EngineRequest],
    usage: UsageCounter,
    answer: Answer,
    user: str | None,
) -> Outputs:
    """The engine's outputs, counted, with a line in the log at their end."""
    begun = time.monotonic()
    reasons: list[str] = []
    ending = "the client went away"
    try:
        async with aclosing(service.engine.generate(requests)) as outputs:
            async for place, each in outputs:
                output = answer.adapt(each)
                usage.add(place, output)
                if output.finished:
                    reasons.append(str(output.outputs[0].finish_reason))
                    ending = ",".join(reasons) if len(reasons) == len(requests) else ending
                yield place, output
    except Exception as error:
        ending = f"{type(error).__name__}: {error}"
        raise
    finally:
        total = usage.usage
        logger.info(
            "request_id=%s user=%.100r prompt_tokens=%d cached_tokens=%d completion_tokens=%d "
            "seconds=%.3f end=%r",
            answer.response_id,
            user,
            total.prompt_tokens,
            total.prompt_tokens_details.cached_tokens,
            total.completion_tokens,
            time.monotonic() - begun,
            ending,
        )


class EventStream(StreamingResponse):
    """Server-sent events.

    Args:
        outputs: where the events come from; closed with the response, however it ends.
        events: the events' text.
        headers: of the response.
    """

    media_type = "text/event-stream"

    def __init__(
        self, outputs: Outputs, events: AsyncGenerator[bytes, None], headers: dict[str, str]
    ) -> None:
        super().__init__(events, headers={"Cache-Control": "no-cache", **headers})
        self._outputs = outputs
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        async with aclosing(self._outputs), aclosing(self._events):
            await super().__call__(scope, receive, send)


async def _events(
    first: tuple[int, RequestOutput],
    outputs: Outputs,
    answer: Answer,
    usage: UsageCounter,
    options: StreamOptions,
) -> AsyncGenerator[bytes, None]:
    try:
        async for place, output in _chain(first, outputs):
            for fields in answer.chunks(place, output):
                if options.continuous_usage_stats:
                    fields["usage"] = usage.usage
                elif options.include_usage:
                    fields["usage"] = None
                yield _event(answer.chunk(fields))
        if options.include_usage:
            yield _event(answer.chunk({"choices": [], "usage": usage.usage}))
    except Exception as error:
        if not isinstance(error, ENGINE_ERRORS):
            logger.exception("request_id=%s: the stream failed", answer.response_id)
        yield _event(as_api_error(error).body)
    yield b"data: [DONE]\n\n"


async def _chain(first: tuple[int, RequestOutput], others: Outputs) -> Outputs:
    yield first
    async for each in others:
        yield each


def _event(content: BaseModel | dict[str, Any]) -> bytes:
    return b"data: " + to_json(content) + b"\n\n"
