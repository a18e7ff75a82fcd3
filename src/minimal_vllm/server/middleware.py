"""Middleware in front of the routes: log, API keys, limits of the body, and disconnects."""

import asyncio
import logging
import secrets
import time
import uuid
from collections.abc import Callable, Sequence

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minimal_vllm.server.errors import ApiError, as_api_error
from minimal_vllm.server.service import ServerMetrics

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/health", "/ping", "/version", "/metrics", "/view"})
"""Paths that need no key: those for monitoring, and the view's empty page."""

OPEN_FOLDERS = ("/view/page/", "/view/source/", "/view/docs/")
"""Folders of the view's page, which asks for a key before it shows anything of the engine."""

BODY_TIMEOUT = 60.0
"""Maximum number of seconds until a body has been received."""


SEND_TIMEOUT = 60.0
"""Maximum number of seconds in which a client reads nothing although the buffers are full."""

MAX_REQUEST_ID = 128
"""Maximum number of characters of an ``X-Request-Id`` that is used."""

CLIENT_WENT_AWAY = 499
"""Status in the log and the metrics of a request whose client left before its status."""


class Observe:
    """Gives each request an id, counts it, and logs the reason if it is refused."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        state = scope.setdefault("state", {})
        chosen = _chosen_id(scope)
        unique = uuid.uuid4().hex
        state["request_id"] = f"{chosen}-{unique[:8]}" if chosen else unique
        status: int | None = None
        begun = time.monotonic()

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.setdefault("X-Request-Id", state["request_id"])
                if chosen:
                    headers["X-Request-Id"] = chosen
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        except Exception as error:
            logger.exception("request_id=%s failed in an unforeseen way", state["request_id"])
            if status is not None:
                raise
            await as_api_error(error).respond(scope, receive, watched_send)
        finally:
            self._note(scope, status or CLIENT_WENT_AWAY, time.monotonic() - begun)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        method, path, state = scope["method"], scope["path"], scope["state"]
        if path not in OPEN_PATHS:
            handler = getattr(scope.get("route"), "path", "none")
            self._metrics.answered(handler, method, status, seconds)
        if status >= 400:
            logger.info(
                "request_id=%s method=%s path=%.100r status=%d seconds=%.3f error=%.500r",
                state["request_id"],
                method,
                path,
                status,
                seconds,
                state.get("error"),
            )


def _chosen_id(scope: Scope) -> str | None:
    """Return the client's id of its request, if it can stand in a header and in the log."""
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    is_printable = given.isascii() and given.isprintable() and " " not in given
    return given if is_printable and 0 < len(given) <= MAX_REQUEST_ID else None


class RequireKey:
    """Admits only requests that have one of the keys, in either of the two headers."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if scope["type"] != "http" or _is_open(scope["path"]) or self._has_key(scope):
            return await self._app(scope, receive, send)
        error = ApiError(
            401,
            "this server needs its API key: send it as 'Authorization: Bearer …' or 'x-api-key: …'",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        return await error.respond(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        headers = dict(scope["headers"])
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        bearer = token.strip() if scheme.lower() == b"bearer" else b""
        given = [bearer, headers.get(b"x-api-key", b"").strip()]
        # All keys are compared, and each in constant time, so that the time reveals nothing.
        matches = [secrets.compare_digest(each, key) for each in given for key in self._keys]
        return any(matches)


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)


class LimitBody:
    """Reads the whole body of a request, and passes it on in one piece unless it is too long."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 413 or 408."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            async with asyncio.timeout(BODY_TIMEOUT):
                body = await self._read(scope, receive)
        except TimeoutError:
            error = ApiError(408, f"the body was not received within {BODY_TIMEOUT:.0f} s")
            return await error.respond(scope, receive, send)
        except ApiError as error:
            return await error.respond(scope, receive, send)
        if body is None:
            return None
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return pending.pop() if pending else await receive()

        return await self._app(scope, receive_again, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the body; None if the client left before its end."""
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        self._check(int(announced) if announced.isdigit() else 0)
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            self._check(size)
            more = message.get("more_body", False)
        return b"".join(parts)

    def _check(self, size: int) -> None:
        if size > self._max_bytes:
            raise ApiError(413, f"the body is longer than {self._max_bytes:,} bytes")


class HeadAsGet:
    """Answers HEAD wherever there is GET, with the same status and headers, and without a body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, as GET if it is HEAD."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self._app(scope, receive, send)
        inner = {**scope, "method": "GET"}
        is_sent = False

        async def send_head(message: Message) -> None:
            nonlocal is_sent
            if message["type"] == "http.response.start":
                await send(message)
            elif not is_sent:
                is_sent = True
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            return await self._app(inner, receive, send_head)
        finally:
            if "route" in inner:
                scope["route"] = inner["route"]


class CancelOnDisconnect:
    """Cancels the handler of a request when its client disconnects or stops reading.

    So a handler never checks whether the client is still there: it is cancelled wherever it waits,
    for the queue, for a token or for a slow reader. The body has been read before.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, until the client disconnects."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        body: list[Message] = [await receive()]
        request_id = scope["state"]["request_id"]
        sent_all = False

        async def listen() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            if not sent_all:
                handler.cancel()

        async def receive_body() -> Message:
            if not body:
                await asyncio.Event().wait()  # a disconnect is received by ``listen``
            return body.pop()

        def give_up() -> None:
            logger.info("request_id=%s: the client stopped reading", request_id)
            handler.cancel()

        async def watched_send(message: Message) -> None:
            nonlocal sent_all
            watchdog.begin()
            try:
                await send(message)
            finally:
                watchdog.end()
            sent_all = message["type"] == "http.response.body" and not message.get("more_body")

        watchdog = Watchdog(SEND_TIMEOUT, give_up)
        handler = asyncio.ensure_future(self._app(scope, receive_body, watched_send))
        listener = asyncio.create_task(listen())
        try:
            await asyncio.wait({handler})
            if not handler.cancelled():
                handler.result()
        finally:
            watchdog.stop()
            listener.cancel()
            handler.cancel()
        return None


class Watchdog:
    """Calls a function once something takes too long that happens again and again.

    It has one timer for all times. A timer for each, as ``asyncio.timeout`` has, would cost as much
    as sending a token.

    Args:
        timeout: maximum number of seconds from ``begin`` to ``end``.
        on_timeout: called, once, in the event loop that is running now.
    """

    def __init__(self, timeout: float, on_timeout: Callable[[], None]) -> None:
        self._timeout = timeout
        self._on_timeout = on_timeout
        self._loop = asyncio.get_running_loop()
        self._begun: float | None = None
        self._timer = self._loop.call_later(timeout, self._look)

    def begin(self) -> None:
        """Note that it begins."""
        self._begun = self._loop.time()

    def end(self) -> None:
        """Note that it has ended."""
        self._begun = None

    def stop(self) -> None:
        """Stop watching."""
        self._timer.cancel()

    def _look(self) -> None:
        """Call the function, or look again when it will be time at the earliest."""
        now = self._loop.time()
        begun = now if self._begun is None else self._begun
        if now - begun >= self._timeout:
            self._on_timeout()
        else:
            self._timer = self._loop.call_at(begun + self._timeout, self._look)
