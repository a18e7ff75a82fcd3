"""Server-sent events, out of bytes that come in pieces."""

from collections.abc import Iterator


class EventParser:
    """The ``data`` of events, as the HTML standard's section 9.2.6 parses them.

    Lines end in LF or CRLF. Comments, and the fields ``id``, ``event`` and ``retry``, which these
    APIs don't use, are skipped.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, received: bytes) -> Iterator[str]:
        """The events that are complete with these bytes, wherever they were cut."""
        *lines, self._rest = (self._rest + received).split(b"\n")
        for line in (each.removesuffix(b"\r") for each in lines):
            field, _, value = line.partition(b":")
            if field == b"data":
                self._data.append(value.removeprefix(b" "))
            elif not line and self._data:
                yield b"\n".join(self._data).decode()
                self._data.clear()
