"""The engine's end of a socket to an HTTP process: it never makes the engine wait."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

from minimal_vllm.server.processes.messages import Decoder, encode

BUFFER = 4 * 2**20
"""Bytes that the system may keep for a process that is slow to read."""
READ_AT_ONCE = 2**18


class Channel:
    """Socket over which messages are sent and received. Any thread may send; one thread receives.

    Bytes that the socket can't take at once are sent by a separate thread, in order.

    Args:
        connection: a connected socket, in blocking mode.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        self._lock = Lock()
        self._late: SimpleQueue[bytes | None] = SimpleQueue()
        self._num_late = 0
        self._sender: Thread | None = None

    def send(self, messages: Sequence[Any]) -> None:
        """Send messages in one frame, without waiting. If the other end is gone, they are lost."""
        frame = encode(messages)
        with self._lock:
            sent = 0 if self._num_late else self._send_now(frame)
            if sent < len(frame):
                self._send_late(frame[sent:])

    def receive(self) -> Iterator[Any]:
        """Yield messages as they come, until the other end is gone."""
        decoder = Decoder()
        try:
            while data := self._socket.recv(READ_AT_ONCE):
                yield from decoder.feed(data)
        except OSError:  # reset by a process that was killed
            return

    def close(self) -> None:
        """Close the socket."""
        self._late.put(None)
        self._socket.close()

    def _send_now(self, frame: bytes) -> int:
        """Send what the socket takes without waiting, and return the number of bytes."""
        try:
            return self._socket.send(frame, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            return len(frame)

    def _send_late(self, rest: bytes) -> None:
        if self._sender is None:
            self._sender = Thread(target=self._send_rest, name="slow sender", daemon=True)
            self._sender.start()
        self._num_late += 1
        self._late.put(rest)

    def _send_rest(self) -> None:
        while (rest := self._late.get()) is not None:
            with suppress(OSError):  # the other end is gone
                self._socket.sendall(rest)
            with self._lock:
                self._num_late -= 1
