"""Queues of lines for the viewers of a live page.

The engine never waits for a viewer. Each viewer has a bounded queue. A viewer that is too slow
loses its unread lines, and starts again with a new snapshot.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable

MAX_BYTES = 8 * 2**20
"""Maximum number of unread bytes per viewer."""


class Viewer:
    """The queue of one viewer. It belongs to the event loop.

    Attributes:
        ended: true if no more lines will be queued, because the feed was closed or the viewer was
            too slow.
    """

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._num_bytes = 0
        self._news = asyncio.Event()
        self.ended = False

    def put(self, lines: bytes) -> None:
        """Queue lines. If the queue gets too long, drop it and end. Does nothing after the end."""
        if self.ended:
            return
        self._num_bytes += len(lines)
        if self._lines and self._num_bytes > MAX_BYTES:
            self._lines.clear()
            self.end()
        else:
            self._lines.append(lines)
            self._news.set()

    def end(self) -> None:
        """Let the viewer end after the lines that are already queued."""
        self.ended = True
        self._news.set()

    async def take(self) -> bytes:
        """Wait for lines, and return all that are queued; empty at the end."""
        if not self.ended:
            await self._news.wait()
            self._news.clear()
        lines = b"".join(self._lines)
        self._lines.clear()
        self._num_bytes = 0
        return lines


class Feed:
    """Distribute lines to all viewers.

    It belongs to the event loop, except for ``is_watched``, which any thread may read.

    Args:
        greet: called with a new viewer. Must create its first lines in the engine's thread, and
            then call ``admit`` with them.
    """

    def __init__(self, greet: Callable[[Viewer], None]) -> None:
        self._greet = greet
        self._viewers: set[Viewer] = set()
        self._num_watching = 0
        self._closed = False

    @property
    def is_watched(self) -> bool:
        """True if there are viewers, so that lines need to be encoded."""
        return self._num_watching > 0

    def admit(self, viewer: Viewer, greeting: bytes) -> None:
        """Queue the first lines of a viewer, and publish all further lines to it."""
        viewer.put(greeting)
        self._viewers.add(viewer)

    def publish(self, lines: bytes) -> None:
        """Queue lines for all viewers."""
        for viewer in self._viewers:
            viewer.put(lines)

    def close(self) -> None:
        """End the queues of all viewers."""
        self._closed = True
        for viewer in self._viewers:
            viewer.end()

    async def lines(self) -> AsyncGenerator[bytes, None]:
        """Yield the lines for one viewer, one or more whole lines at a time."""
        self._num_watching += 1
        try:
            while not self._closed:
                async for lines in self._lines_of(Viewer()):
                    yield lines
        finally:
            self._num_watching -= 1

    async def _lines_of(self, viewer: Viewer) -> AsyncGenerator[bytes, None]:
        self._greet(viewer)
        try:
            while lines := await viewer.take():
                yield lines
        finally:
            self._viewers.discard(viewer)
