"""Reader of trace files, with error messages that say what is wrong with a file."""

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
    ScheduledRecord,
    StepRecord,
)


class TraceError(ValueError):
    """Error for a file that is not a readable trace; the message says why."""


@contextmanager
def open_trace(path: Path) -> Iterator[tuple[Header, Iterator[Line]]]:
    """Open a trace, and yield its header and an iterator over its lines.

    The file is closed at the end of the ``with`` block. An incomplete last line, as a killed
    process leaves it, is skipped.

    Raises:
        OSError: the file can't be read.
        TraceError: the file is not a trace, is of another version, is broken or lacks lines.
            Also raised while lines are read.
    """
    with path.open("rb") as file:
        try:
            header = decode_header(file.readline())
        except ValueError as error:
            raise TraceError(f"{path} is not a readable trace: {_explain(error)}") from error
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
    """Check that each line of a trace can follow the lines before it.

    Consumers that rebuild the engine's state from the lines rely on this.
    """

    def __init__(self) -> None:
        # Request id -> number of its computed tokens; None while the request waits.
        self._computed: dict[str, int | None] = {}
        self._step = -1
        self._has_plans = False

    def take(self, line: Line) -> None:
        """Check the next line.

        Raises:
            ValueError: this line can't come next.
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
        for entry in record.scheduled:
            self._reject(entry)
        for request_id, _ in record.finished[record.num_aborted :]:
            self._end(request_id)

    def _plan(self, record: PlanRecord | StepRecord) -> None:
        for request_id in record.preempted:
            self._computed_of(request_id)
            self._computed[request_id] = None
        for entry in record.scheduled:
            computed = self._computed_of(entry.request_id)
            if computed not in (None, entry.start):
                raise ValueError(
                    f"step {record.step} continues request {entry.request_id} at token "
                    f"{entry.start}, but {computed} of its tokens were computed before: lines "
                    f"before this one are missing"
                )
            self._computed[entry.request_id] = entry.start + entry.num_tokens

    def _reject(self, entry: ScheduledRecord) -> None:
        if entry.num_rejected:
            computed = self._computed_of(entry.request_id)
            self._computed[entry.request_id] = (computed or 0) - entry.num_rejected

    def _end(self, request_id: str) -> None:
        self._computed_of(request_id)
        del self._computed[request_id]

    def _computed_of(self, request_id: str) -> int | None:
        if request_id not in self._computed:
            raise ValueError(f"no earlier line records the arrival of request {request_id}")
        return self._computed[request_id]


def _explain(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
    return str(error)
