"""The engine as an HTTP process sees it: in another process, at the other end of a socket."""

import asyncio
import itertools
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from minimal_vllm.server.engine_client import (
    Call,
    EngineClient,
    EngineFailedError,
    EngineRequest,
)
from minimal_vllm.server.processes.messages import (
    AbortCall,
    AddCall,
    Answered,
    AskMetrics,
    CallAborted,
    CallFailed,
    Counts,
    Decoder,
    EngineDied,
    MetricsText,
    NewTokens,
    Ready,
    StepOutputs,
    encode,
)
from minimal_vllm.server.processes.remote_output import OutputBuilder
from minimal_vllm.server.served_model import ServedModel

ENDED = "the engine's process has ended"


@dataclass(slots=True)
class RemoteCall:
    """A call whose requests are in the engine's process."""

    call: Call
    builders: list[OutputBuilder]
    """Makers of the requests' outputs, in the order of the requests."""
    num_unfinished: int


class RemoteEngine(EngineClient):
    """Engine in another process.

    That process samples tokens, and this one turns them into text. Only the texts of requests with
    stop strings are made in the engine's process, because a stop string has to end the request in
    the step that completes it.

    Messages that are sent in one iteration of the event loop make up one frame.

    Args:
        channel: socket that is connected to the engine's process.
        model: the model's text side.
    """

    def __init__(self, channel: socket.socket, model: ServedModel) -> None:
        super().__init__()
        self._channel = channel
        self.model = model
        self._calls: dict[int, RemoteCall] = {}
        self._numbers = itertools.count()
        self._call_numbers: dict[Call, int] = {}
        self._unsent: list[Any] = []
        self._counts = Counts()
        self._num_sent = 0
        self._questions: dict[int, asyncio.Future[bytes]] = {}

    async def start(self) -> None:
        """Connect the socket to the event loop that is running now."""
        self._loop = asyncio.get_running_loop()
        transport, _ = await self._loop.create_connection(
            lambda: _Connection(self), sock=self._channel
        )
        self._transport = transport

    async def stop(self) -> None:
        """Send what is left, and close the socket."""
        self._flush()
        self._transport.close()

    @property
    def num_waiting(self) -> int:
        """Number of requests that waited as of the last message, and of those on their way."""
        return self._counts.num_waiting + self._num_sent - self._counts.num_received

    @property
    def num_running(self) -> int:
        """Number of running requests, as of the last message."""
        return self._counts.num_running

    # ---- to the engine --------------------------------------------------------------------------

    def _send(self, call: Call) -> None:
        number = next(self._numbers)
        builders = [OutputBuilder(request, self.model) for request in call.requests]
        self._calls[number] = RemoteCall(call, builders, len(builders))
        self._call_numbers[call] = number
        self._num_sent += len(call.requests)
        self._post(AddCall(number, [_without_text(request) for request in call.requests]))

    def _abort(self, call: Call, places: Sequence[int]) -> None:
        number = self._call_numbers.get(call)
        if number is not None:
            request_ids = [call.requests[place].request_id for place in places]
            self._post(AbortCall(number, request_ids))

    def answered(self, handler: str, method: str, status: int, seconds: float) -> None:
        """Note that an HTTP request was answered; see ``Metrics.answered``."""
        self._post(Answered(handler, method, status, seconds))

    async def render(self) -> bytes:
        """Return the metrics of the whole server in Prometheus's text format.

        Raises:
            EngineFailedError: the engine's process has ended.
        """
        if self._transport.is_closing():
            raise EngineFailedError(ENDED)
        number, answer = next(self._numbers), self._loop.create_future()
        self._questions[number] = answer
        self._post(AskMetrics(number))
        try:
            return cast("bytes", await answer)
        finally:
            del self._questions[number]

    def tell_ready(self) -> None:
        """Tell the engine's process that clients can connect."""
        self._post(Ready())

    def _post(self, message: Any) -> None:
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(message)

    def _flush(self) -> None:
        if self._unsent:
            self._transport.write(encode(self._unsent))
            self._unsent.clear()

    # ---- from the engine ------------------------------------------------------------------------

    def take(self, message: Any) -> None:
        """Take in a message from the engine's process."""
        match message:
            case StepOutputs():
                for fields in message.outputs:
                    self._take_tokens(NewTokens(*fields))
            case Counts():
                self._counts = message
            case CallFailed():
                if remote := self._forget(message.call):
                    remote.call.mailbox.fail(message.error)
            case CallAborted():
                self._take_aborted(message)
            case MetricsText():
                answer = self._questions.get(message.number)
                if answer is not None and not answer.done():
                    answer.set_result(message.text)
            case EngineDied():
                self._die(EngineFailedError(message.reason))

    def lost(self) -> None:
        """Handle the end of the connection: the engine's process has closed its socket."""
        error = EngineFailedError(ENDED)
        if self.refusal is None:
            self._die(error)
        self.end_all(error)
        self._dead.set()
        for answer in self._questions.values():
            if not answer.done():
                answer.set_exception(error)

    def _take_tokens(self, new: NewTokens) -> None:
        remote = self._calls.get(new.call)
        if remote is None:
            return
        output = remote.builders[new.place].build(new)
        if output.finished:
            remote.num_unfinished -= 1
            if remote.num_unfinished == 0:
                self._forget(new.call)
        remote.call.put(output)

    def _take_aborted(self, message: CallAborted) -> None:
        remote = self._forget(message.call)
        if remote is not None and remote.call.on_abort is not None:
            last = [(new.place, remote.builders[new.place].build(new)) for new in message.last]
            remote.call.on_abort(last)

    def _forget(self, number: int) -> RemoteCall | None:
        remote = self._calls.pop(number, None)
        if remote is not None:
            self._call_numbers.pop(remote.call, None)
        return remote


def _without_text(request: EngineRequest) -> EngineRequest:
    """Return the request as the engine's process gets it: without text, unless it needs one."""
    if request.params.stop or not request.params.detokenize:
        return request
    return replace(request, params=replace(request.params, detokenize=False))


class _Connection(asyncio.Protocol):
    """The event loop's end of the socket."""

    def __init__(self, engine: RemoteEngine) -> None:
        self._engine = engine
        self._decoder = Decoder()

    def data_received(self, data: bytes) -> None:
        for message in self._decoder.feed(data):
            self._engine.take(message)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._engine.lost()
