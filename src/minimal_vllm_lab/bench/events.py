"""Parser of server-sent events that arrive in pieces."""

from collections.abc import Iterator


class EventParser:
    """Parser of the ``data`` of events, as specified in section 9.2.6 of the HTML standard.

    Lines end in LF or CRLF. Comments and the fields ``id``, ``event`` and ``retry`` are skipped,
    because OpenAI's API does not use them.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, received: bytes) -> Iterator[str]:
        """Yield the events that these bytes complete, wherever the stream was cut."""
        *lines, self._rest = (self._rest + received).split(b"\n")
        for line in (each.removesuffix(b"\r") for each in lines):
            field, _, value = line.partition(b":")
            if field == b"data":
                self._data.append(value.removeprefix(b" "))
            elif not line and self._data:
                yield b"\n".join(self._data).decode()
                self._data.clear()
