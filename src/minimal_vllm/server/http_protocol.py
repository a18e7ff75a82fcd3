"""HTTP/1.1 on one connection: uvicorn's and h11's, except that a chunk of a stream costs less.

There is a chunk for each token, and checking it in h11 takes longer than writing it.
"""

from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEAD = 65536
"""Maximum length of a request's head, uvicorn's default."""


class HttpProtocol(H11Protocol):
    """Uvicorn's protocol with our ``ChunkingConnection``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = ChunkingConnection(h11.SERVER, MAX_HEAD)


class ChunkingConnection(h11.Connection):
    """State of a connection. It writes chunks itself, which change nothing in h11's state."""

    _sends_chunks = False

    def send_with_data_passthrough(self, event: h11.Event) -> list[bytes] | None:
        """Return the bytes that tell the client of an event, as h11 writes them; in ``send``."""
        if self._sends_chunks and isinstance(event, h11.Data) and event.data:
            return [b"%x\r\n" % len(event.data), event.data, b"\r\n"]
        written = super().send_with_data_passthrough(event)
        if isinstance(event, h11.Response) and written:
            head = b"".join(written).lower()
            self._sends_chunks = b"\r\ntransfer-encoding: chunked\r\n" in head
        elif not isinstance(event, h11.Data):  # the response has ended, or the connection
            self._sends_chunks = False
        return written
