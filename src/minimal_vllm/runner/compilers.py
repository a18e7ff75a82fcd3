"""Compiling the kernels of a first start in processes, each with an interpreter lock of its own.

Much of compiling is Python, so threads wait for each other most of the time. This is the engine's
side, which imports neither PyTorch nor Triton: the program on the other side, ``compiler``, is to
start while the engine's process still imports them. It leaves kernels in Triton's cache.
"""

import os
import socket
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Pipe
from pathlib import Path
from threading import Thread
from typing import Protocol


class Source(Protocol):
    """A kernel that can be sent to another process."""

    def compile(self) -> None:
        """Compile it into Triton's cache."""
        ...


class Compilers:
    """A program that compiles each kernel in a process of its own. It ends with this process."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-m", "minimal_vllm.runner.compiler", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # if a kernel is wrong, the caller will find out
                start_new_session=True,  # Ctrl-C should only reach this process
            )
        Thread(target=process.wait, name="compilers", daemon=True).start()

    def compile(self, kernel: Source) -> None:
        """Wait until the kernel is compiled, or can't be, for whatever reason."""
        ours, theirs = Pipe()
        with ours, suppress(EOFError, OSError):
            with theirs:
                socket.send_fds(self._channel, [b"\0"], [theirs.fileno()])
            ours.send(kernel)
            ours.recv()  # nothing comes, but the process ends, and with it the connection

    def close(self) -> None:
        """Let the program end. Kernels are not compiled from then on."""
        self._channel.close()


_running: Compilers | None = None


def start_compilers() -> None:
    """Start a program that compiles kernels, if this is the first start here.

    In later starts it would take longer than the few kernels that Triton's cache may lack.
    """
    global _running
    if not _has_kernels(_cache_folder()):
        _running = Compilers()


def running_compilers() -> Compilers | None:
    """Return the program that ``start_compilers`` has started, until ``end_compilers``."""
    return _running


def end_compilers() -> None:
    """End the program, if one runs. Kernels are compiled in this process from then on."""
    global _running
    if _running:
        _running.close()
    _running = None


def _cache_folder() -> Path:
    """Return the folder of Triton's cache, without importing Triton."""
    home = os.environ.get("TRITON_HOME") or Path.home()
    return Path(os.environ.get("TRITON_CACHE_DIR") or Path(home, ".triton", "cache"))


def _has_kernels(folder: Path) -> bool:
    return folder.exists() and any(folder.iterdir())
