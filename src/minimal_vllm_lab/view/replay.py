"""Serve the page of a recorded trace."""

from collections.abc import AsyncGenerator
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Response

from minimal_vllm_lab.trace.reader import open_trace
from minimal_vllm_lab.view.routes import event_stream, page_routes

CHUNK_BYTES = 2**18


def check_trace(path: Path) -> int:
    """Read a whole trace, and return its number of steps.

    Raises:
        OSError: the file can't be read.
        TraceError: the file is no trace, has another version, or is broken.
    """
    with open_trace(path) as (_, lines):
        return sum(type(line).__name__ == "StepRecord" for line in lines)


def replay_app(path: Path) -> FastAPI:
    """Return an application that shows a trace, which must have been checked before."""
    app = FastAPI(openapi_url=None)
    router = page_routes()

    @router.get("/view/events")
    async def events() -> Response:
        return event_stream(_read(path))

    app.include_router(router)
    return app


async def _read(path: Path) -> AsyncGenerator[bytes, None]:
    """Yield whole lines of a trace, followed by a line that marks the end of the trace."""
    with path.open("rb") as file:
        while lines := file.readlines(CHUNK_BYTES):
            yield b"".join(line for line in lines if line.endswith(b"\n"))
    yield b'{"kind":"complete"}\n'


def replay_server(path: Path) -> uvicorn.Server:
    """Return a server for a trace; its ``serve`` takes a bound socket."""
    config = uvicorn.Config(replay_app(path), lifespan="off", log_config=None, access_log=False)
    return uvicorn.Server(config)
