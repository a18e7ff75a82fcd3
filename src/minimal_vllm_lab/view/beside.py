"""Two live engines side by side: the same requests at the same time, and one pace for both."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse

from minimal_vllm_lab.view.extension import View
from minimal_vllm_lab.view.prompts import ViewerPrompt, ViewerPrompts
from minimal_vllm_lab.view.routes import HEADERS, PAGE, event_stream, live_routes
from minimal_vllm_lab.view.traffic import Traffic

if TYPE_CHECKING:
    from minimal_vllm.llm import LLM
    from minimal_vllm.server.async_engine import AsyncEngine
    from minimal_vllm.server.engine_client import EngineRequest
    from minimal_vllm.server.pace import PaceState
    from minimal_vllm_lab.view.traffic_settings import TrafficSettings


@dataclass(frozen=True)
class BothEngines:
    """Where traffic is sent to: each request goes to both engines."""

    engines: "Sequence[AsyncEngine]"

    @property
    def num_waiting(self) -> int:
        """Number of requests that wait, in the engine in which more wait."""
        return max(engine.num_waiting for engine in self.engines)

    async def generate(self, requests: "Sequence[EngineRequest]") -> "AsyncIterator[None]":
        """Send requests to both engines, and yield once for each when both have served them."""
        for ended in await asyncio.gather(*(_drain(each, requests) for each in self.engines)):
            yield ended


async def _drain(engine: "AsyncEngine", requests: "Sequence[EngineRequest]") -> None:
    async for _ in engine.generate(requests):
        pass


class BothPrompts(ViewerPrompts):
    """Sends viewers' prompts to two engines.

    Args:
        engine: the first engine.
        llm: its model and tokenizer.
        other: sends prompts to the second engine.
    """

    def __init__(self, engine: "AsyncEngine", llm: "LLM", other: ViewerPrompts) -> None:
        super().__init__(engine, llm)
        self._other = other

    async def send(self, prompt: ViewerPrompt) -> None:
        """Send a prompt to both engines, and return when both have it."""
        await asyncio.gather(super().send(prompt), self._other.send(prompt))


class PairView(View):
    """The view of an engine beside another one: what is done to the first is done to both.

    Args:
        other: the view of the second engine, which must be attached to it.
        engine: the second engine, not started yet.
        names: what the engines are called on the page.
    """

    def __init__(self, other: View, engine: "AsyncEngine", names: Sequence[str]) -> None:
        super().__init__()
        self._other, self._other_engine, self._names = other, engine, names

    def attach(self, llm: "LLM", engine: "AsyncEngine") -> None:
        """Watch the first engine."""
        super().attach(llm, engine)
        self.prompts = BothPrompts(engine, llm, self._other.prompts)

    def make_traffic(self, settings: "TrafficSettings") -> None:
        """Create demo traffic for both engines. It counts the steps of the first."""
        both = BothEngines((self._engine, self._other_engine))
        self.traffic = Traffic(both, self._llm, settings, lambda: self.pace.state.paused)

    def start(self) -> None:
        """Start the second engine, and the demo traffic."""
        super().start()
        self._other.start()
        self._starting = self._loop.create_task(self._other_engine.start())

    def close(self) -> None:
        """End the feeds of all viewers, stop the traffic, and stop the second engine."""
        super().close()
        self._other.close()
        self._stopping = self._loop.create_task(self._other_engine.stop())

    def set_pace(self, state: "PaceState") -> None:
        """Pause or resume both engines, or change their speed."""
        super().set_pace(state)
        self._other.set_pace(state)

    def allow_steps(self, count: int) -> None:
        """Let each engine make ``count`` steps, and then pause."""
        super().allow_steps(count)
        self._other.allow_steps(count)

    def routes(self) -> APIRouter:
        """Return the routes of the page with both engines; those of one engine are the first's."""
        router, views = APIRouter(include_in_schema=False), (self, self._other)

        @router.get("/view")
        def index() -> FileResponse:
            return FileResponse(PAGE / "beside.html", headers=HEADERS)

        @router.get("/view/events")
        async def events(trace: Annotated[int, Query(ge=0, le=1)] = 0) -> Response:
            return event_stream(views[trace].lines())

        @router.get("/view/traces")
        async def traces() -> Sequence[str]:
            return self._names

        router.include_router(live_routes(self))
        return router
