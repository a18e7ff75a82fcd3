"""Reads a trace file, and says what is wrong with one that can't be read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from minimal_vllm.trace.lines import Header, Line, decode, decode_header
from minimal_vllm.trace.step_record import (
    AbortRecord,
    PlanRecord,
    RequestRecord,
    ResetRecord,
    StepRecord,
)


class TraceError(ValueError):
    """A file is no trace that this program can read; the message says why."""


@contextmanager
def open_trace(path: Path) -> Iterator[tuple[Header, Iterator[Line]]]:
    """A trace's header, and its lines as they are read.

    A last line without its end is what a killed process leaves behind: it is left out.

    Raises:
        OSError: the file can't be read.
        TraceError: it is no trace, of a newer version, broken, or lacks lines; also while lines are
            read.
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
    order = _Order()
    for number, text in enumerate(file, 2):
        if not text.endswith(b"\n"):
            return
        try:
            line = decode(text)
            order.take(line)
        except ValueError as error:
            raise TraceError(f"{path} is broken in line {number}: {_explain(error)}") from error
        yield line


class _Order:
    """Sees whether each line can follow those before it. Who rebuilds a state relies on it."""

    def __init__(self) -> None:
        self._computed: dict[str, int | None] = {}  # tokens of each request; None: it waits
        self._step = -1
        self._has_plans = False

    def take(self, line: Line) -> None:
        """Take the next line.

        Raises:
            ValueError: it can't be the next one.
        """
        match line:
            case RequestRecord():
                self._computed[line.request_id] = None
            case AbortRecord():
                self._end(line.request_id)
            case ResetRecord():
                self._computed.clear()
            case PlanRecord():
                self._has_plans = True
                self._plan(line)
            case StepRecord():
                self._take_step(line)

    def _take_step(self, record: StepRecord) -> None:
        if record.step <= self._step:
            raise ValueError(f"step {record.step} comes after step {self._step}")
        self._step = record.step
        if not self._has_plans:
            self._plan(record)
        for request_id, _ in record.finished[record.num_aborted :]:
            self._end(request_id)

    def _plan(self, record: PlanRecord | StepRecord) -> None:
        for request_id in record.preempted:
            self._see(request_id)
            self._computed[request_id] = None
        for entry in record.scheduled:
            computed = self._see(entry.request_id)
            if computed not in (None, entry.start):
                raise ValueError(
                    f"step {record.step} goes on at token {entry.start} of request "
                    f"{entry.request_id}, but {computed} of its tokens were computed: lines are "
                    f"missing before it"
                )
            self._computed[entry.request_id] = entry.start + entry.num_tokens

    def _end(self, request_id: str) -> None:
        self._see(request_id)
        del self._computed[request_id]

    def _see(self, request_id: str) -> int | None:
        if request_id not in self._computed:
            raise ValueError(f"no line before it says that request {request_id} came")
        return self._computed[request_id]


def _explain(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
    return str(error)
