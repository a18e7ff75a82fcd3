"""Writes an engine's records to a trace file."""

import logging
import time
from pathlib import Path

from minimal_vllm.trace.facts import EngineFacts
from minimal_vllm.trace.lines import EndRecord, Header, LineEncoder, Spell, encode, encode_header
from minimal_vllm.trace.step_record import Listener, Record

logger = logging.getLogger(__name__)

SECONDS_UNWRITTEN = 1.0
"""Maximum age of records that are not on disk yet. A killed process loses these."""


class TraceWriter(Listener):
    """Writes each record as a line of JSON.

    Args:
        path: trace file; an existing file is overwritten.
        max_bytes: maximum size of the file. The trace ends when the next record would exceed it.

    Raises:
        OSError: the file can't be written.
    """

    reads_experts = True

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._file = path.open("wb")
        self._room = max_bytes
        self._ended = False
        self._flushed = time.monotonic()

    def begin(self, engine: EngineFacts, spell: Spell | None, started: float | None = None) -> None:
        """Write the header. Call it once, before the first record.

        Args:
            engine: facts about the engine whose records follow.
            spell: returns the text of a token; None to write no texts.
            started: present time on the records' clock, in seconds. Default: ``time.monotonic()``.
        """
        self._encoder = LineEncoder(spell)
        now = time.monotonic() if started is None else started
        self._write(encode_header(Header(engine=engine, started=now)))

    def __call__(self, record: Record) -> None:
        """Write a record, unless the file is full."""
        if self._ended:
            return
        lines = self._encoder.encode(record)
        if len(lines) > self._room:
            self._ended = True
            self._file.write(encode(EndRecord("the trace reached its maximum size")))
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
        """Write buffered records and close the file."""
        self._file.close()
