"""HTTP/1.1 on a connection, as uvicorn and h11 speak it, with cheaper chunks of streams.

A stream has a chunk for each token, and h11 takes longer to check a chunk than to write it.
"""

from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class HttpProtocol(H11Protocol):
    """Uvicorn's protocol on a ``ChunkingConnection``, which has the same default limits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = ChunkingConnection(h11.SERVER)


class ChunkingConnection(h11.Connection):
    """State of a connection, which writes chunks itself: they don't change h11's state."""

    _sends_chunks = False

    def send_with_data_passthrough(self, event: h11.Event) -> list[bytes] | None:
        """Return the bytes of an event, the same as h11's; ``send`` calls this."""
        if self._sends_chunks and isinstance(event, h11.Data) and event.data:
            return [b"%x\r\n" % len(event.data), event.data, b"\r\n"]
        written = super().send_with_data_passthrough(event)
        if isinstance(event, h11.Response) and written:
            head = b"".join(written).lower()
            self._sends_chunks = b"\r\ntransfer-encoding: chunked\r\n" in head
        elif not isinstance(event, h11.Data):  # the response or the connection has ended
            self._sends_chunks = False
        return written
