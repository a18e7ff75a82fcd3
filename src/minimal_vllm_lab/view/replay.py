"""Serve the page of a recorded trace, or of two traces side by side."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import FastAPI, Query, Response

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


def replay_app(*paths: Path) -> FastAPI:
    """Return an application that shows one trace or two, which must have been checked before."""
    app = FastAPI(openapi_url=None)
    router = page_routes("index.html" if len(paths) == 1 else "pair.html")

    @router.get("/view/events")
    async def events(trace: Annotated[int, Query(ge=0, lt=len(paths))] = 0) -> Response:
        return event_stream(_read(paths[trace]))

    @router.get("/view/traces")
    async def traces() -> list[str]:
        return [path.stem for path in paths]

    app.include_router(router)
    return app


async def _read(path: Path) -> AsyncGenerator[bytes, None]:
    """Yield whole lines of a trace, followed by a line that marks the end of the trace."""
    with path.open("rb") as file:
        while lines := file.readlines(CHUNK_BYTES):
            yield b"".join(line for line in lines if line.endswith(b"\n"))
    yield b'{"kind":"complete"}\n'


def replay_server(*paths: Path) -> uvicorn.Server:
    """Return a server for one trace or two; its ``serve`` takes a bound socket."""
    config = uvicorn.Config(replay_app(*paths), lifespan="off", log_config=None, access_log=False)
    return uvicorn.Server(config)
