"""Serving over a socket until a signal arrives or the engine fails."""

import asyncio
import resource
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from minimal_vllm.server.config import ServerConfig
from minimal_vllm.server.engine_client import EngineFailedError, EngineStoppedError
from minimal_vllm.server.service import Service
from minimal_vllm.signals import ENDING

KEEP_ALIVE = 75
"""Seconds that an idle connection stays open. Clients reuse one for less time (aiohttp 15 s, httpx
5 s), so no request arrives just as it is closed."""
BACKLOG = 2048
"""Maximum number of connections that wait to be accepted."""
ACCEPT_AT_ONCE = 16
"""Number of waiting connections that are accepted in a row. If no more files can be opened, asyncio
logs an error for each."""
MAX_FILES = 65_535
"""Number of open files that a server asks the system for, as vLLM's does. A connection is one."""
SECONDS_TO_SEND = 5
"""Number of seconds that clients have to read the rest of their answers when the server stops."""


def allow_many_connections() -> None:
    """Raise this process's limit of open files, and that of the processes that it starts.

    Most systems allow a process 1,024 of them until it asks for more.
    """
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if most == resource.RLIM_INFINITY else min(MAX_FILES, most)
    if limit != resource.RLIM_INFINITY and limit < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address; it accepts connections once the server listens.

    Raises:
        OSError: the address can't be used.
    """
    with _named_in_errors(host, port):
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    return listener


@contextmanager
def _named_in_errors(host: str, port: int) -> Iterator[None]:
    """Add the address to the message of an error."""
    try:
        yield
    except OSError as error:
        raise OSError(f"can't listen on {host}, port {port}: {error.strerror}") from error


def check_certificate(config: ServerConfig) -> None:
    """Check that the certificate and its key can be used, before anything is loaded.

    Raises:
        ValueError: they can't be used.
    """
    if config.ssl_certfile:
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile)
        except OSError as error:
            raise ValueError(
                f"the certificate {config.ssl_certfile} can't be used with the key "
                f"{config.ssl_keyfile or 'in it'}: {error}"
            ) from error


async def serve(
    service: Service,
    listener: socket.socket,
    on_ready: Callable[[], None],
    accept_at_once: int = ACCEPT_AT_ONCE,
    end_signals: Iterable[int] = ENDING,
) -> None:
    """Serve until a signal, then let running requests finish; a second signal ends them.

    Args:
        service: the service, not started yet.
        listener: a bound socket.
        on_ready: called when clients can connect.
        accept_at_once: largest number of connections that are accepted in a row, of those that
            wait. Other processes get the others.
        end_signals: numbers of the signals that end the server.

    Raises:
        EngineFailedError: the engine failed.
        OSError: another program has listened at the address since the socket was bound to it.
    """
    engine, config = service.engine, service.config
    with _named_in_errors(*listener.getsockname()[:2]):
        listener.listen(BACKLOG)
    signals: asyncio.Queue[int] = asyncio.Queue()
    for number in end_signals:
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number)

    def ready() -> None:
        listener.listen(BACKLOG)  # uvicorn has set the other number
        on_ready()

    server = _Server(_uvicorn_config(service, accept_at_once), ready)
    await engine.start()
    if service.view:
        service.view.start()
    serving = asyncio.create_task(server.serve([listener]))
    try:
        await _first_of(_done(serving), signals.get(), engine.wait_until_dead())
        engine.refuse(EngineStoppedError("the server is shutting down"))
        if service.view:
            service.view.close()
        await _first_of(engine.wait_until_idle(), signals.get(), timeout=config.shutdown_timeout)
        engine.end_all(
            EngineStoppedError(
                f"the server is shutting down, and this request was not finished within "
                f"{config.shutdown_timeout:g} s, or before a second signal"
            )
        )
    finally:
        server.should_exit = True
        try:
            await serving
        finally:
            await engine.stop()
    if isinstance(engine.refusal, EngineFailedError):
        raise engine.refusal


def _uvicorn_config(service: Service, accept_at_once: int) -> uvicorn.Config:
    # An engine's process, beside others that speak HTTP, spares itself half a second of imports.
    from minimal_vllm.server.app import make_app
    from minimal_vllm.server.http_protocol import HttpProtocol

    return uvicorn.Config(
        make_app(service),
        http=HttpProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=service.config.uvicorn_log_level,
        access_log=False,
        backlog=accept_at_once,
        ssl_certfile=service.config.ssl_certfile,
        ssl_keyfile=service.config.ssl_keyfile,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=SECONDS_TO_SEND,
    )


class _Server(uvicorn.Server):
    """Uvicorn's server without its signal handlers, and with a callback when it is ready."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()


async def _done(task: asyncio.Task[None]) -> None:
    await asyncio.wait({task})


async def _first_of(*events: Coroutine[Any, Any, Any], timeout: float | None = None) -> None:
    """Wait until one of the events has happened, or for ``timeout`` seconds."""
    tasks = [asyncio.create_task(event) for event in events]
    await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
