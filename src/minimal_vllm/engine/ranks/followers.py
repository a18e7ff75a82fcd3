"""The processes of all ranks but the first, seen from the first."""

import os
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any

import torch

from minimal_vllm.config import EngineConfig
from minimal_vllm.engine.ranks.messages import (
    Built,
    Call,
    Decided,
    Failed,
    Setup,
    Started,
)
from minimal_vllm.runner.failures import RankFailedError, RankLostError

SECONDS_TO_EXPLAIN = 5.0
"""Maximum time to wait for the reason, once a rank has failed."""
SECONDS_TO_END = 5.0
"""Maximum time that a process has to end by itself."""


@dataclass
class Follower:
    """Process of a rank, and the connection to it."""

    index: int
    """Number of the rank."""
    process: "subprocess.Popen[bytes]"
    connection: Connection
    failure: Failed | None = None
    """Reason why it has failed, once that is known."""


class Followers:
    """Processes of the ranks from 1 on, which do what they are told.

    They end when this object is collected, or when this process ends, in whatever way.

    Args:
        config: the engine's configuration.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._folder = TemporaryDirectory(prefix="minimal-vllm-")
        self.folder = Path(self._folder.name)
        self._all = [_start(index) for index in range(1, config.tensor_parallel_size)]
        num_threads = torch.get_num_threads()
        self._ending = Event()
        self._end = weakref.finalize(
            self, _end_all, self._all, self._folder, num_threads, self._ending
        )
        # The ranks share the CPU's cores. All have equally many threads, because the rounding of a
        # product may depend on their number.
        own_threads = max(1, num_threads // config.tensor_parallel_size)
        torch.set_num_threads(own_threads)
        for each in self._all:
            with suppress(OSError):  # it has ended already, as ``wait_until`` will find out
                each.connection.send(Setup(config, each.index, self.folder, own_threads))

    def wait_until(self, stage: type[Started] | type[Built]) -> None:
        """Wait until all processes have reached a stage.

        Raises:
            ValueError: an engine can't be built.
            RankFailedError: a process has ended.
        """
        for each in self._all:
            if not isinstance(_receive(each), stage):
                raise self.failure()

    def call_when_one_ends(self, function: Callable[[], None]) -> None:
        """Call a function, in another thread, as soon as a process has ended by itself."""
        ending = self._ending  # not self, or this object would never be collected

        def watch(process: "subprocess.Popen[bytes]") -> None:
            process.wait()
            if not ending.is_set():
                function()

        for each in self._all:
            name = f"watcher of rank {each.index}"
            Thread(target=watch, args=(each.process,), name=name, daemon=True).start()

    def tell(self, method: str, **arguments: Any) -> None:
        """Tell all ranks to call a method of their engine. This doesn't wait until they do.

        Raises:
            RankLostError: a process has ended.
        """
        self._send(Call(method, arguments))

    def decide(self, function: Callable[[], Any]) -> Any:
        """Call a function, tell all ranks what it returns, and return it; see ``Decide``.

        Raises:
            RankLostError: a process has ended.
        """
        result = function()
        self._send(Decided(result))
        return result

    def _send(self, message: Call | Decided) -> None:
        try:
            for each in self._all:
                each.connection.send(message)
        except OSError as error:
            raise RankLostError(f"the connection to another rank has ended: {error}") from error

    def failure(self) -> Exception:
        """Return the error that describes why a rank has failed, as far as it is soon known."""
        deadline = time.monotonic() + SECONDS_TO_EXPLAIN
        waiting = {each.connection: each for each in self._all}
        while waiting and (seconds := deadline - time.monotonic()) > 0:
            ready = wait(list(waiting), seconds)
            for follower in [each for each in waiting.values() if each.connection in ready]:
                match follower.failure or _receive(follower):
                    case Failed(is_consequence=True):
                        del waiting[follower.connection]
                    case Failed() as failure:
                        return failure.as_error(follower.index)
        return RankFailedError("the ranks have lost each other")

    def end(self) -> None:
        """End all processes."""
        self._end()


def _start(index: int) -> Follower:
    """Start a process, which then waits for its setup.

    It is in a session of its own, because Ctrl-C should only reach this process.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", "minimal_vllm.engine.ranks", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": _gpu(index)},
        )
    return Follower(index, process, Connection(ours.detach()))


def _gpu(index: int) -> str:
    """Return the name of a rank's GPU, which is then the only one that the rank's process sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not visible:
        return str(index)
    names = visible.split(",")
    return names[index] if index < len(names) else ""  # on a CPU


def _receive(follower: Follower) -> Started | Built | Failed:
    """Return the next message of a rank. The end of its process counts as one."""
    try:
        message: Started | Built | Failed = follower.connection.recv()
    except (EOFError, OSError):
        message = Failed(_describe_end(follower.process))
    if isinstance(message, Failed):
        follower.failure = message
    return message


def _describe_end(process: "subprocess.Popen[bytes]") -> str:
    try:
        status = process.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        return "its process does not answer"
    return (
        f"its process was killed by signal {-status}"
        if status < 0
        else (f"its process ended with status {status}")
    )


def _end_all(
    followers: list[Follower], folder: "TemporaryDirectory[str]", threads: int, ending: Event
) -> None:
    ending.set()
    for each in followers:
        each.connection.close()  # upon which the process ends
    for each in followers:
        try:
            each.process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            each.process.kill()
            each.process.wait()
    folder.cleanup()
    torch.set_num_threads(threads)
