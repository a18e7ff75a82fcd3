"""Routes of the view: the page's files, its feed of records, and its controls."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Literal

from fastapi import APIRouter, HTTPException, Query, Response
from fastapi.responses import FileResponse, HTMLResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from minimal_vllm.server.engine_client import (
    EngineFailedError,
    EngineStoppedError,
    RequestRefusedError,
)
from minimal_vllm.server.pace import PaceState
from minimal_vllm_lab.view.document import IMAGES, docs_image, docs_page
from minimal_vllm_lab.view.live import EngineBusyError, LiveView
from minimal_vllm_lab.view.prompts import ViewerPrompt
from minimal_vllm_lab.view.snapshot import Snapshot
from minimal_vllm_lab.view.source import PACKAGE, NoSuchPageError, source_page
from minimal_vllm_lab.view.token_lens import LensError, LensQuery, TokenReport
from minimal_vllm_lab.view.traffic_settings import TrafficSettings

PAGE = PACKAGE / "view" / "page"
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:",
}
"""Headers of all responses. The page may load nothing from other servers."""


class Pace(BaseModel):
    """Body of ``POST /view/pace``: the pace that the engine should have."""

    model_config = ConfigDict(extra="forbid")

    paused: bool = False
    interval: Annotated[float, Field(ge=0, le=60)] = 0.0
    """Minimum time from step to step, in seconds."""
    until: Literal["preemption", "eviction"] | None = None
    """Event after whose next step the engine pauses. None: it does not pause by itself."""
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Make this number of steps, and then pause. Other fields are ignored."""


class TourState(BaseModel):
    """Body of ``POST /view/tour``."""

    model_config = ConfigDict(extra="forbid")

    touring: bool
    """True: empty the engine for a tour. False: end the tour, and let the demo traffic go on."""


def page_routes(first: str = "index.html") -> APIRouter:
    """Return the routes that live engines and traces have in common: page, source, documents.

    Args:
        first: file that is shown at ``/view``.
    """
    router = APIRouter(include_in_schema=False)

    @router.get("/view")
    def index() -> FileResponse:
        return FileResponse(PAGE / first, headers=HEADERS)

    @router.get("/view/page/{name}")
    def page_file(name: str) -> FileResponse:
        path = PAGE / name
        if path.parent != PAGE or not path.is_file():
            raise HTTPException(404, f"there is no file {name}")
        return FileResponse(path, headers=HEADERS)

    @router.get("/view/source/{name:path}")
    def source(name: str, symbol: str | None = None) -> HTMLResponse:
        try:
            return HTMLResponse(source_page(name, symbol), headers=HEADERS)
        except NoSuchPageError as error:
            raise HTTPException(404, str(error)) from error

    @router.get("/view/docs/{name:path}")
    def docs(name: str) -> Response:
        try:
            if name.endswith(IMAGES):
                return FileResponse(docs_image(name), headers=HEADERS)
            return HTMLResponse(docs_page(name), headers=HEADERS)
        except NoSuchPageError as error:
            raise HTTPException(404, str(error)) from error

    return router


def live_routes(view: LiveView) -> APIRouter:
    """Return the routes of a live engine: its page, records, state and controls."""
    router = page_routes()

    @router.get("/view/events")
    async def events() -> Response:
        return event_stream(view.lines())

    @router.get("/view/state")
    async def state() -> Snapshot:
        return await view.snapshot()

    @router.get("/view/token")
    async def token(query: Annotated[LensQuery, Query()]) -> TokenReport:
        try:
            return await view.look_at(query)
        except LensError as error:
            raise HTTPException(404, str(error)) from error

    @router.post("/view/prompt", status_code=204)
    async def prompt(body: ViewerPrompt) -> None:
        try:
            await view.prompts.send(body)
        except (RequestRefusedError, ValueError) as error:
            raise HTTPException(422, str(error)) from error
        except (EngineFailedError, EngineStoppedError) as error:
            raise HTTPException(503, str(error)) from error

    @router.post("/view/pace", status_code=204)
    async def pace(body: Pace) -> None:
        if body.steps is not None:
            view.allow_steps(body.steps)
        else:
            view.set_pace(PaceState(body.paused, body.interval, body.until))

    router.include_router(demo_routes(view))
    return router


def demo_routes(view: LiveView) -> APIRouter:
    """Return the routes of what only ``minimal-vllm view`` has: demo traffic, and the tour."""
    router = APIRouter(include_in_schema=False)

    def check_demo() -> None:
        if view.traffic is None:
            raise HTTPException(404, "only 'minimal-vllm view' has demo traffic and a tour")

    @router.post("/view/traffic", status_code=204)
    async def traffic(settings: TrafficSettings) -> None:
        check_demo()
        view.set_traffic(settings)

    @router.post("/view/tour", status_code=204)
    async def tour(body: TourState) -> None:
        check_demo()
        if not body.touring:
            return view.end_tour()
        try:
            await view.begin_tour()
        except EngineBusyError as error:
            raise HTTPException(409, str(error)) from error

    return router


def event_stream(lines: AsyncGenerator[bytes, None]) -> StreamingResponse:
    """Return lines as server-sent events, one event per line."""

    async def events() -> AsyncGenerator[bytes, None]:
        async with aclosing(lines):
            async for several in lines:
                yield b"".join(b"data: %s\n\n" % line for line in several.splitlines())

    return StreamingResponse(events(), media_type="text/event-stream", headers=HEADERS)
