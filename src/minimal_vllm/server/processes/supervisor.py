"""Starting HTTP processes, restarting one that dies, and ending them all."""

import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from types import FrameType

from minimal_vllm.garbage import frozen_garbage
from minimal_vllm.server.config import ServerConfig
from minimal_vllm.server.engine_client import EngineFailedError
from minimal_vllm.server.engine_loop import EngineLoop, Outlet
from minimal_vllm.server.http_server import SECONDS_TO_SEND
from minimal_vllm.server.processes.channel import Channel
from minimal_vllm.server.processes.messages import END, PreloadTokenizer, Ready, Setup
from minimal_vllm.server.processes.process_outlet import ProcessOutlet
from minimal_vllm.server.run import LoadedEngine
from minimal_vllm.server.served_model import ModelFacts
from minimal_vllm.server.service import NUM_GRAMMAR_THREADS
from minimal_vllm.signals import ENDING

logger = logging.getLogger(__name__)

GRACE = 5.0
"""Seconds that a process has to end after its clients have."""


@dataclass(eq=False)
class HttpProcess:
    """A process that speaks HTTP."""

    process: "subprocess.Popen[bytes]"
    channel: Channel
    is_ready: bool = False
    """Whether it has accepted connections."""


@dataclass(frozen=True)
class Signaled:
    """This process got a signal to end."""


@dataclass(frozen=True)
class BecameReady:
    """A process accepts connections."""

    child: HttpProcess


@dataclass(frozen=True)
class Ended:
    """A process has ended."""

    child: HttpProcess


@dataclass(frozen=True)
class Died:
    """The engine loop has ended with an error."""

    error: EngineFailedError


Event = Signaled | BecameReady | Ended | Died


class Supervisor:
    """Runs an engine in this process, and HTTP in others, which accept from one socket.

    The HTTP processes are started at once, so that they are up when the model is loaded.

    Args:
        config: the server's options.
        listener: a bound socket.
        count: number of HTTP processes.
    """

    def __init__(self, config: ServerConfig, listener: socket.socket, count: int) -> None:
        self._config = config
        self._listener = listener
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._compilers = ThreadPoolExecutor(NUM_GRAMMAR_THREADS, "grammar")
        self._children = [self._start() for _ in range(count)]
        self._is_announced = False
        self._failure: Exception | None = None
        self._deadline: float | None = None

    def serve(self, loaded: LoadedEngine, on_ready: Callable[[], None]) -> None:
        """Serve until a signal, then let running requests finish; a second signal ends them.

        Args:
            loaded: the engine, which no other code may use from then on.
            on_ready: called when clients can connect.

        Raises:
            EngineFailedError: the engine loop failed, or an HTTP process can't be started.
        """
        self._loaded = loaded
        self._setup = Setup(
            self._config, loaded.model_names, int(time.time()), ModelFacts.of(loaded.llm)
        )
        llm = loaded.llm
        self._loop = EngineLoop(llm.engine, loaded.metrics, idle_work=llm.built.idle_work)
        self._loop.connect(_Watch(self._events))
        self._loop.start()
        with self._signals():
            for child in self._children:
                self._connect(child)
            with frozen_garbage():  # while they load the model's text side
                self._watch(on_ready)
        self._loop.stop()
        if self._failure is not None:
            raise self._failure

    def preload_tokenizer(self, tokenizer: Path) -> None:
        """Let the HTTP processes load the tokenizer that they will probably need, ahead of time."""
        for child in self._children:
            child.channel.send([PreloadTokenizer(tokenizer)])

    def close(self) -> None:
        """Kill the HTTP processes that still run."""
        for child in self._children:
            child.process.kill()
            child.process.wait()
        self._compilers.shutdown(wait=False)

    # ---- starting -------------------------------------------------------------------------------

    def _start(self) -> HttpProcess:
        """Start an HTTP process, which then waits for its setup.

        It is in a session of its own, because Ctrl-C should only reach this process.
        """
        ours, theirs = socket.socketpair()
        inherited = (theirs.fileno(), self._listener.fileno())
        module = "minimal_vllm.server.processes"
        with theirs:
            process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-m", module, *map(str, inherited)],
                stdin=subprocess.DEVNULL,
                pass_fds=inherited,
                start_new_session=True,
            )
        return HttpProcess(process, Channel(ours))

    def _connect(self, child: HttpProcess) -> None:
        """Send a process its setup, and listen to it in a thread."""
        grammars = self._loaded.llm.text.grammars
        outlet = ProcessOutlet(
            self._loop, self._loaded.metrics, grammars, self._compilers, child.channel
        )
        child.channel.send([self._setup])
        self._loop.connect(outlet)
        Thread(target=self._listen, args=(child, outlet), name="listener", daemon=True).start()

    def _listen(self, child: HttpProcess, outlet: ProcessOutlet) -> None:
        for message in child.channel.receive():
            if isinstance(message, Ready):
                self._events.put(BecameReady(child))
            else:
                outlet.take(message)
        self._loop.disconnect(outlet)
        child.process.wait()
        child.channel.close()
        self._events.put(Ended(child))

    # ---- watching -------------------------------------------------------------------------------

    def _watch(self, on_ready: Callable[[], None]) -> None:
        """Handle events until all HTTP processes have ended."""
        while self._children:
            try:
                event = self._events.get(timeout=self._seconds_left())
            except Empty:
                self._kill_all()
                continue
            match event:
                case Signaled():
                    self._end(self._failure)
                case Died(error):
                    self._end(error)
                case Ended(child):
                    self._replace(child)
                case BecameReady(child):
                    child.is_ready = True
                    if not self._is_announced and all(each.is_ready for each in self._children):
                        self._is_announced = True
                        on_ready()

    def _replace(self, child: HttpProcess) -> None:
        """Start another process for one that has ended, unless they are to end.

        If one ends by itself before it is ready, others would, too, and the server ends. A signal
        may kill any process at any time, so it ends the server only at its start.
        """
        self._children.remove(child)
        if self._deadline is not None:
            return
        status = child.process.returncode
        was_killed = status < 0 and self._is_announced
        if not child.is_ready and not was_killed:
            reason = f"an HTTP process ended with status {status} before it was ready"
            self._end(EngineFailedError(reason))
            return
        logger.error("An HTTP process ended with status %d; another is started", status)
        successor = self._start()
        self._children.append(successor)
        self._connect(successor)

    def _end(self, failure: Exception | None) -> None:
        """Let the processes finish their requests and end; the second call ends the requests."""
        self._failure = self._failure or failure
        timeout = self._config.shutdown_timeout + SECONDS_TO_SEND + GRACE
        self._deadline = self._deadline or time.monotonic() + timeout
        for child in self._children:
            child.process.send_signal(END)

    def _seconds_left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _kill_all(self) -> None:
        logger.error("HTTP processes did not end in time, and are killed")
        self._deadline = time.monotonic() + GRACE
        for child in self._children:
            child.process.kill()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn SIGTERM and SIGINT into events."""

        def note(_number: int, _frame: FrameType | None) -> None:
            self._events.put(Signaled())

        before = [signal.signal(number, note) for number in ENDING]
        try:
            yield
        finally:
            for number, handler in zip(ENDING, before, strict=True):
                signal.signal(number, handler)


class _Watch(Outlet):
    """Reports the death of the engine loop to the supervisor. It sends no requests."""

    def __init__(self, events: "SimpleQueue[Event]") -> None:
        self._events = events

    def deliver(self, deliveries: Sequence[object]) -> None:
        raise NotImplementedError

    def fail(self, call: object, error: Exception) -> None:
        raise NotImplementedError

    def aborted(self, call: object, last: Sequence[object]) -> None:
        raise NotImplementedError

    def die(self, error: EngineFailedError) -> None:
        self._events.put(Died(error))
