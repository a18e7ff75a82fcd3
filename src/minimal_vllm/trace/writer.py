"""Writes what happens in an engine to a file."""

import logging
import time
from pathlib import Path

from minimal_vllm.trace.facts import EngineFacts
from minimal_vllm.trace.lines import EndRecord, Header, LineEncoder, Spell, encode, encode_header
from minimal_vllm.trace.step_record import Record, Recorder

logger = logging.getLogger(__name__)

SECONDS_UNWRITTEN = 1.0
"""What a killed process may lose."""


class TraceWriter(Recorder):
    """An observer that writes each record as a line of JSON.

    Args:
        path: the file, which is overwritten.
        max_bytes: the trace ends when the file would grow beyond this.

    Raises:
        OSError: it can't be written.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._file = path.open("wb")
        self._room = max_bytes
        self._ended = False
        self._flushed = time.monotonic()

    def begin(self, engine: EngineFacts, spell: Spell | None, started: float | None = None) -> None:
        """Write the header; before the first record.

        Args:
            engine: whose records will come.
            spell: None: no texts are known.
            started: what their clock shows now, in seconds; None: it is ``time.monotonic()``.
        """
        self._encoder = LineEncoder(spell)
        now = time.monotonic() if started is None else started
        self._write(encode_header(Header(engine=engine, started=now)))

    def __call__(self, record: Record) -> None:
        """Write a record."""
        if self._ended:
            return
        lines = self._encoder.encode(record)
        if len(lines) > self._room:
            self._ended = True
            self._file.write(encode(EndRecord("the trace reached its greatest size")))
            logger.warning("%s is full: the trace ends here, the engine goes on", self._path)
        else:
            self._write(lines)
        if time.monotonic() > self._flushed + SECONDS_UNWRITTEN:
            self._file.flush()
            self._flushed = time.monotonic()

    def _write(self, lines: bytes) -> None:
        self._file.write(lines)
        self._room -= len(lines)

    def close(self) -> None:
        """Write what is left."""
        self._file.close()
