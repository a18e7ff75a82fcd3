"""Lines on their way to the viewers.

Nobody waits for a viewer: each has a bounded queue. One that is too slow loses what it has not
read, and begins anew with a fresh snapshot.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable

MAX_BYTES = 8 * 2**20
"""What a viewer may leave unread."""


class Viewer:
    """The queue of one viewer; belongs to the event loop."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._num_bytes = 0
        self._news = asyncio.Event()
        self.ended = False
        """No more lines will come, be it that some were dropped."""

    def put(self, lines: bytes) -> None:
        """Queue some lines; or, if they are too many, drop all and end. After that, nothing."""
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
        """After what is queued, there is no more."""
        self.ended = True
        self._news.set()

    async def take(self) -> bytes:
        """All that is queued, once there is any; nothing at the end."""
        if not self.ended:
            await self._news.wait()
            self._news.clear()
        lines = b"".join(self._lines)
        self._lines.clear()
        self._num_bytes = 0
        return lines


class Feed:
    """Belongs to the event loop, but for ``is_watched``, which any thread may ask.

    Args:
        greet: has the lines with which a viewer begins made in the engine's thread, and then
            ``admit`` called with them.
    """

    def __init__(self, greet: Callable[[Viewer], None]) -> None:
        self._greet = greet
        self._viewers: set[Viewer] = set()
        self._num_watching = 0
        self._closed = False

    @property
    def is_watched(self) -> bool:
        """Whether lines need to be made."""
        return self._num_watching > 0

    def admit(self, viewer: Viewer, greeting: bytes) -> None:
        """From now on, this viewer gets what is published."""
        viewer.put(greeting)
        self._viewers.add(viewer)

    def publish(self, lines: bytes) -> None:
        """Queue lines for all viewers."""
        for viewer in self._viewers:
            viewer.put(lines)

    def close(self) -> None:
        """End what all viewers get."""
        self._closed = True
        for viewer in self._viewers:
            viewer.end()

    async def lines(self) -> AsyncGenerator[bytes, None]:
        """What one viewer gets: one or more whole lines at a time."""
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
