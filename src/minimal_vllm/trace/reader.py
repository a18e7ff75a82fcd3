"""Reads a trace file, and says what is wrong with one that can't be read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from minimal_vllm.trace.lines import Header, Line, decode, decode_header


class TraceError(ValueError):
    """A file is no trace that this program can read; the message says why."""


@contextmanager
def open_trace(path: Path) -> Iterator[tuple[Header, Iterator[Line]]]:
    """A trace's header, and its lines as they are read.

    A last line without its end is what a killed process leaves behind: it is left out.

    Raises:
        OSError: the file can't be read.
        TraceError: it is no trace, of a newer version, or broken; also while lines are read.
    """
    with path.open("rb") as file:
        try:
            header = decode_header(file.readline())
        except ValueError as error:
            raise TraceError(
                f"{path} is not a trace that can be read: {_explain(error)}"
            ) from error
        yield header, _lines(path, file)


def _lines(path: Path, file: BinaryIO) -> Iterator[Line]:
    for number, text in enumerate(file, 2):
        if not text.endswith(b"\n"):
            return
        try:
            yield decode(text)
        except ValueError as error:
            raise TraceError(f"{path} is broken in line {number}: {_explain(error)}") from error


def _explain(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
    return str(error)
