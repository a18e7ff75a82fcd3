"""Messages between the engine's process and an HTTP process.

Messages are pickled: both processes run the same version of this program, and the socket between
them has no address that others could reach. A frame is a list of messages, preceded by its length.
"""

import pickle
import signal
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from minimal_vllm.outputs import FlatLogprobs, FlatPromptLogprobs, RequestOutput
from minimal_vllm.server.config import ServerConfig
from minimal_vllm.server.engine_client import EngineRequest
from minimal_vllm.server.served_model import ModelFacts

LENGTH = struct.Struct("<Q")
"""Length of a frame, in front of it."""

END = signal.SIGUSR1
"""Signal by which the engine's process ends an HTTP process, as SIGTERM does in a server of one
process. SIGTERM itself may also come from others, who send it to all processes of a server."""

# ---- to an HTTP process -------------------------------------------------------------------------


@dataclass(frozen=True)
class PreloadTokenizer:
    """Command to load a tokenizer, which ``Setup`` will probably name, ahead of time."""

    tokenizer: Path


@dataclass(frozen=True)
class Setup:
    """All that an HTTP process needs to serve the model. ``PreloadTokenizer`` may come before."""

    config: ServerConfig
    model_names: list[str]
    created: int
    """Time at which the server was started, in seconds since 1970."""
    facts: ModelFacts


class NewTokens(NamedTuple):
    """New output of one request. It is a tuple because there is one for each request and step."""

    call: int
    place: int
    """Place of the request in its call."""
    token_ids: list[int]
    text: str
    """Text of the tokens, if the engine's process made it; see ``RemoteEngine``."""
    finish_reason: str | None
    stop_reason: int | str | None
    num_cached_tokens: int
    logprobs: FlatLogprobs | None
    prompt_logprobs: FlatPromptLogprobs | None

    @classmethod
    def of(cls, call: int, place: int, output: RequestOutput) -> "NewTokens":
        """Return the part of an output that the other process doesn't know."""
        (completion,) = output.outputs
        return cls(
            call,
            place,
            completion.token_ids,
            completion.text,
            completion.finish_reason,
            completion.stop_reason,
            output.num_cached_tokens,
            completion.logprobs,
            output.prompt_logprobs,
        )


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """All outputs of one step for a process."""

    outputs: Sequence[tuple[Any, ...]]
    """The fields of ``NewTokens``, as plain tuples, which take a third of the time to encode."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of requests in the engine; sent when they have changed."""

    num_waiting: int = 0
    num_running: int = 0
    num_received: int = 0
    """Number of requests that the engine's process has received from this one."""


@dataclass(frozen=True, slots=True)
class CallFailed:
    """Reason why the requests of a call could not be added."""

    call: int
    error: Exception


@dataclass(frozen=True, slots=True)
class CallAborted:
    """Last outputs of those requests of a call that were aborted."""

    call: int
    last: Sequence[NewTokens]


@dataclass(frozen=True, slots=True)
class EngineDied:
    """Reason why the engine has ended."""

    reason: str


@dataclass(frozen=True, slots=True)
class MetricsText:
    """Answer to ``AskMetrics``."""

    number: int
    text: bytes


# ---- to the engine's process --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """The process accepts connections."""


@dataclass(frozen=True, slots=True)
class AddCall:
    """Requests to add, all or none."""

    call: int
    requests: Sequence[EngineRequest]


@dataclass(frozen=True, slots=True)
class AbortCall:
    """Requests of a call to abort."""

    call: int
    request_ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class Answered:
    """An HTTP request was answered; see ``Metrics.answered``."""

    handler: str
    method: str
    status: int
    seconds: float


@dataclass(frozen=True, slots=True)
class AskMetrics:
    """Ask for all metrics, in Prometheus's text format."""

    number: int


# ---- frames -------------------------------------------------------------------------------------


def encode(messages: Sequence[Any]) -> bytes:
    """Return the frame of some messages."""
    content = pickle.dumps(messages, pickle.HIGHEST_PROTOCOL)
    return LENGTH.pack(len(content)) + content


def receive_one(connection: socket.socket) -> list[Any]:
    """Wait for one frame and return its messages; none if the other end is gone."""
    head = _receive_exactly(connection, LENGTH.size)
    content = _receive_exactly(connection, LENGTH.unpack(head)[0]) if head else b""
    return list(Decoder().feed(head + content))


def _receive_exactly(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        piece = connection.recv(size - len(received))
        if not piece:
            return b""
        received += piece
    return received


class Decoder:
    """Decodes frames from the pieces in which a socket delivers them."""

    def __init__(self) -> None:
        self._received = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Yield the messages of all frames that are complete with this piece."""
        self._received += data
        while (end := self._end_of_frame()) is not None:
            messages = pickle.loads(self._received[LENGTH.size : end])  # noqa: S301 - see above
            del self._received[:end]
            yield from messages

    def _end_of_frame(self) -> int | None:
        if len(self._received) < LENGTH.size:
            return None
        end = LENGTH.size + int(LENGTH.unpack_from(self._received)[0])
        return end if len(self._received) >= end else None
