"""Two processes that run the same code of a learner, and add up their tensors."""

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from minimal_vllm.plugin import load_file
from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule
from minimal_vllm_lab.check.search import History, find_mistake

CHAPTER = "20-ranks"
SECONDS_TO_ANSWER = 30.0
"""Maximum time to wait for the other process."""
TOGETHER = Rule(
    "Both ranks call add equally often.",
    "A sum needs both parts. On GPUs, a rank whose partner doesn't come waits forever.",
    CHAPTER,
)
ALIKE = Rule(
    "Both ranks add tensors of the same shape and dtype.",
    "Numbers are added place by place. On GPUs nobody compares shapes: what is added is garbage.",
    CHAPTER,
)


@dataclass(frozen=True)
class _Part:
    """Message: a tensor to add up."""

    tensor: Tensor


@dataclass(frozen=True)
class _End:
    """Message: how a case has ended for a rank."""

    result: Tensor | None
    lesson: Lesson | None
    """A rule that the rank has broken."""


class PairedRank:
    """One of two ranks, with the attributes of the engine's ``Ranks`` that a learner needs.

    Args:
        index: number of this rank, 0 or 1.
        connection: connection to the other.
    """

    count = 2

    def __init__(self, index: int, connection: Connection) -> None:
        self.index = index
        self.sums: list[tuple[int, ...]] = []
        """Shapes of the tensors that were added up."""
        self._connection = connection
        self._end_of_other: _End | None = None

    def add(self, part: Tensor) -> Tensor:
        """Return the sum of both ranks' tensors.

        Raises:
            Broken: the other rank adds another shape, or nothing any more.
        """
        self._connection.send(_Part(part.detach().clone()))
        message = self._end_of_other or _receive(self._connection)
        if isinstance(message, _End):
            self._end_of_other = message
            raise Broken(
                TOGETHER,
                f"rank {self.index} adds {len(self.sums) + 1} times, rank {1 - self.index} "
                f"{len(self.sums)} times",
            )
        other = message.tensor
        self.sums.append(tuple(part.shape))
        if (part.shape, part.dtype) != (other.shape, other.dtype):
            raise Broken(
                ALIKE,
                f"rank {self.index} adds {_described(part)}, rank {1 - self.index} adds "
                f"{_described(other)}",
            )
        return part + other

    def end(self, mine: _End) -> _End:
        """Tell the other rank how this case has ended here; return how it has ended there."""
        self._connection.send(mine)
        while self._end_of_other is None:
            message = _receive(self._connection)
            if isinstance(message, _End):
                self._end_of_other = message
        return self._end_of_other


Work = Callable[[ModuleType, Any, PairedRank], Tensor]
"""Computes a rank's result, from the learner's module and a case."""


class SecondRank:
    """Another process, which loads a learner's file and computes as rank 1.

    Args:
        path: the learner's file.
    """

    def __init__(self, path: Path) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        # A daemon ends with this process.
        self._process = context.Process(target=_serve, args=(theirs, path), daemon=True)
        self._process.start()
        theirs.close()

    def compute_with(
        self, work: Work, module: ModuleType, case: Any
    ) -> tuple[Tensor, Tensor, PairedRank]:
        """Compute a case as rank 0, together with the other process.

        Args:
            work: a function at the top level of a module, which both processes call.
            module: the learner's module, loaded here.
            case: argument of ``work``.

        Returns:
            The results of rank 0 and of rank 1, and rank 0.

        Raises:
            Broken: a rank breaks a rule, or raises.
        """
        self._connection.send((work, case))
        rank = PairedRank(0, self._connection)
        result, error = None, None
        try:
            result = work(module, case, rank)
        except Exception as raised:
            error = raised
        other = rank.end(_End(None, None))
        if isinstance(error, Broken) and error.rule is TOGETHER and other.lesson:
            error = None  # the other rank's mistake is the reason
        if error is not None:
            raise error
        if other.lesson is not None:
            lesson = other.lesson
            raise Broken(lesson.rule, f"in rank 1: {lesson.found}", lesson.expected)
        assert result is not None and other.result is not None  # noqa: S101, PT018
        return result, other.result, rank

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(SECONDS_TO_ANSWER)
        self._process.kill()


def _serve(connection: Connection, path: Path) -> None:
    """Compute one case after the other as rank 1, until the connection ends."""
    torch.set_num_threads(1)
    with redirect_stdout(sys.stderr):  # standard output may be read by a program
        module = load_file(path)
        while True:
            try:
                work, case = connection.recv()
            except EOFError:
                return
            _compute_as_second(PairedRank(1, connection), work, module, case)


def _compute_as_second(rank: PairedRank, work: Work, module: ModuleType, case: Any) -> None:
    results = []

    def run(_: History) -> None:
        results.append(work(module, case, rank))

    lesson = find_mistake(run)
    rank.end(_End(results[0] if results else None, lesson and replace(lesson, history=())))


def _receive(connection: Connection) -> _Part | _End:
    """Return the next message of the other rank.

    Raises:
        Broken: it doesn't answer.
    """
    if not connection.poll(SECONDS_TO_ANSWER):
        raise Broken(TOGETHER, "the other rank does not answer")
    message: _Part | _End = connection.recv()
    return message


def _described(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {tensor.dtype}".replace("torch.", "")
