"""Sending batches of events over ZeroMQ, and again to readers that missed some.

A message has three frames: the topic, the batch's number in 8 bytes, big-endian, and the batch. A
reader that sees a gap in the numbers asks the replay endpoint for all batches from a number on.

Source of the protocol: vLLM 0.33.0, ``vllm/distributed/kv_events.py``.
"""

import weakref
from collections import deque
from itertools import count
from threading import Thread
from typing import Any

import msgspec
import zmq

from minimal_vllm.config import KVEventsConfig
from minimal_vllm.kv_events.messages import KvEventBatch

END = (-1).to_bytes(8, "big", signed=True)
"""Number that ends a replay."""

Buffer = deque[tuple[bytes, bytes]]
"""The last batches, each with its number."""


class KvEventPublisher:
    """Publishes batches. Sending never waits: a reader that is too slow misses some.

    Args:
        config: endpoints, topic, and how much is kept.

    Raises:
        ValueError: an endpoint can't be used.
    """

    def __init__(self, config: KVEventsConfig) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._numbers = count()
        self._topic = config.topic.encode()
        self._buffer: Buffer = deque(maxlen=config.buffer_steps)
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self.close = weakref.finalize(self, _close, self._context, self._socket)
        """Close all sockets. It happens at the end of the process anyway."""
        self._socket.set_hwm(config.hwm)
        _open(self._socket, config.endpoint)
        if config.replay_endpoint:
            replay = self._context.socket(zmq.ROUTER)
            replay.linger = 0
            replay.set_hwm(2 * (config.buffer_steps + 1))
            try:
                _open(replay, config.replay_endpoint, always_bind=True)
            except ValueError:
                replay.close(0)
                raise
            arguments = (replay, self._buffer, self._topic)
            Thread(target=_replay, args=arguments, name="kv-events", daemon=True).start()

    def publish(self, batch: KvEventBatch) -> None:
        """Send a batch to all readers. Always to be called in the same thread."""
        number = next(self._numbers).to_bytes(8, "big")
        payload = self._encoder.encode(batch)
        self._buffer.append((number, payload))
        self._socket.send_multipart((self._topic, number, payload))


def _open(socket: "zmq.Socket[bytes]", endpoint: str, *, always_bind: bool = False) -> None:
    """Bind a socket to an endpoint, or connect it where the endpoint names another host.

    As in vLLM, ``tcp://*:5557`` is bound, and ``tcp://host:5557`` is connected to.
    """
    binds = always_bind or any(each in endpoint for each in ("*", "::", "ipc://", "inproc://"))
    try:
        if binds:
            socket.bind(endpoint)
        else:
            socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise ValueError(f"kv_events_config: {endpoint} can't be used: {error}") from error


def _replay(socket: "zmq.Socket[bytes]", buffer: Buffer, topic: bytes) -> None:
    """Answer requests for old batches until the context is terminated."""
    with socket:
        while True:
            try:
                sender, *frames = socket.recv_multipart()
            except zmq.ContextTerminated:
                return
            if len(frames) != 2 or len(frames[1]) != 8:
                continue  # no request that vLLM would answer
            # Copied in one go, since the engine's thread appends meanwhile.
            for number, payload in buffer.copy():
                if number >= frames[1]:
                    socket.send_multipart((sender, b"", topic, number, payload))
            socket.send_multipart((sender, b"", b"", END, b""))


def _close(context: "zmq.Context[Any]", socket: "zmq.Socket[bytes]") -> None:
    socket.close(0)
    context.term()  # which ends the thread that replays
