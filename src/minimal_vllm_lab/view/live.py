"""The live view: an observer that sends a running engine's records to the page, and controls it."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

from pydantic_core import to_json

from minimal_vllm.server.pace import Pace, PaceState
from minimal_vllm.trace.facts import engine_facts
from minimal_vllm.trace.lines import Header, LineEncoder, encode_header
from minimal_vllm.trace.step_record import (
    AbortRecord,
    Listener,
    Record,
    RequestRecord,
    ResetRecord,
    StepRecord,
)
from minimal_vllm_lab.view.contents import BlockContents
from minimal_vllm_lab.view.feed import Feed, Viewer
from minimal_vllm_lab.view.prompts import ViewerPrompts
from minimal_vllm_lab.view.snapshot import Snapshot, take_snapshot
from minimal_vllm_lab.view.token_lens import LensQuery, TokenLens, TokenReport
from minimal_vllm_lab.view.traffic import DEMO, Traffic
from minimal_vllm_lab.view.traffic_settings import TrafficSettings

if TYPE_CHECKING:
    from minimal_vllm.llm import LLM
    from minimal_vllm.server.async_engine import AsyncEngine

T = TypeVar("T")
IDLE_TRIES = 50
"""Number of times to look whether the engine is idle, before a tour is refused."""
IDLE_SECONDS = 0.1
"""Seconds from one such look to the next."""


class EngineBusyError(ValueError):
    """Raised when a tour can't begin, because the engine serves requests of others."""


class LiveView(Listener):
    """Watch an engine on behalf of the viewers, and pass their commands to it.

    Two threads use this object. Records, snapshots and the pace belong to the engine's thread;
    viewers and traffic belong to the event loop.

    Attributes:
        pace: the pace of the engine.
        traffic: the demo traffic, or None.
        prompts: sends what viewers type.
        touring: true while a viewer takes the tour, or the next viewer will begin it.
    """

    reads_experts = True

    def __init__(self) -> None:
        self.pace = Pace()
        self.traffic: Traffic | None = None
        self.touring = False
        self._feed = Feed(self._greet)
        self._step = -1

    def attach(self, llm: "LLM", engine: "AsyncEngine") -> None:
        """Watch an engine. Must be called before its first step, with this view as an observer."""
        self._llm, self._engine = llm, engine
        self._scheduler = llm.engine.scheduler
        tokenizer = llm.built.files.tokenizer
        self._header = Header(engine=engine_facts(llm.config, llm.built))
        self._encoder = LineEncoder(tokenizer.token_text if tokenizer else None)
        self._contents = BlockContents(self._scheduler)
        self._lens = TokenLens(llm.config, llm.built)
        self.prompts = ViewerPrompts(engine, llm)

    def make_traffic(self, settings: TrafficSettings) -> None:
        """Create demo traffic, which begins with ``start``."""
        self.traffic = Traffic(self._engine, self._llm, settings, lambda: self.pace.state.paused)

    def offer_tour(self) -> None:
        """Keep the engine paused and the demo traffic away until a viewer has taken the tour."""
        self.touring = True
        self.pace.change(replace(self.pace.state, paused=True))
        if self.traffic:
            self.traffic.is_held = True

    # ---- in the event loop ----------------------------------------------------------------------

    def start(self) -> None:
        """Store the running event loop, and start the demo traffic, if there is any."""
        self._loop = asyncio.get_running_loop()
        if self.traffic:
            self.traffic.start()

    def close(self) -> None:
        """End the feeds of all viewers, stop the traffic, and let the engine run at full speed."""
        self._feed.close()
        self.prompts.stop()
        if self.traffic:
            self.traffic.stop()
        self.set_pace(PaceState())

    def lines(self) -> AsyncGenerator[bytes, None]:
        """Yield the lines for one viewer: a header, a snapshot, and then all records."""
        return self._feed.lines()

    async def snapshot(self) -> Snapshot:
        """Return the engine's state between two steps."""
        return await self._ask(self._take_snapshot)

    async def look_at(self, query: LensQuery) -> TokenReport:
        """Look at a token of a running request between two steps.

        Raises:
            LensError: the token can't be looked at.
        """
        return await self._ask(lambda: self._lens.look(query))

    async def _ask(self, question: Callable[[], T]) -> T:
        """Call ``question`` in the engine's thread between two steps, and return what it returns.

        An error is raised here; it does not harm the engine.
        """
        answer: asyncio.Future[T] = self._loop.create_future()

        def give(result: T | None, error: Exception | None) -> None:
            if answer.done():  # the request may have been canceled
                return
            if error:
                answer.set_exception(error)
            else:
                answer.set_result(cast("T", result))

        def find() -> None:
            try:
                self._loop.call_soon_threadsafe(give, question(), None)
            except Exception as error:
                self._loop.call_soon_threadsafe(give, None, error)

        self._engine.between_steps(find)
        return await answer

    async def begin_tour(self) -> None:
        """Stop the demo traffic, pause the engine, and empty its cache.

        Raises:
            EngineBusyError: requests of others do not end.
        """
        was_touring, self.touring = self.touring, True
        self.set_pace(replace(self.pace.state, paused=True))
        if self.traffic:
            await self.traffic.hold()
        for _ in range(IDLE_TRIES):
            if await self._ask(self._reset_if_idle):
                return
            await asyncio.sleep(IDLE_SECONDS)  # a page that was just closed takes a moment to leave
        if not was_touring:
            self.end_tour()
        raise EngineBusyError(
            "the engine serves other requests: take the tour when they have ended"
        )

    def end_tour(self) -> None:
        """Let the demo traffic and the engine go on."""
        self.touring = False
        if self.traffic:
            self.traffic.is_held = False
        self.set_pace(replace(self.pace.state, paused=False))

    def set_pace(self, state: PaceState) -> None:
        """Pause or resume the engine, or change its speed."""
        self._change_pace(partial(self.pace.change, state))

    def allow_steps(self, count: int) -> None:
        """Let the engine make ``count`` steps, and then pause."""
        self._change_pace(partial(self.pace.allow_steps, count))

    def set_traffic(self, settings: TrafficSettings) -> None:
        """Change the demo traffic, if there is any."""
        if self.traffic:
            self.traffic.settings = settings
            self._feed.publish(self._controls())

    # ---- in the engine's thread ------------------------------------------------------------------

    def _reset_if_idle(self) -> bool:
        """Forget all cached blocks if no request is unfinished, and return whether it was so."""
        is_idle = not self._llm.engine.has_unfinished_requests
        if is_idle:
            self._llm.engine.reset()
        return is_idle

    def __call__(self, record: Record) -> None:
        """Send a record to the viewers, and let the pace and the traffic react to it."""
        self._contents(record)
        if self._feed.is_watched:
            self._publish(self._encoder.encode(record))
        if isinstance(record, StepRecord):
            self._step = record.step
            if self.pace.sees(record):
                self._publish(self._controls())
            if self.traffic:
                self._loop.call_soon_threadsafe(self.traffic.on_step)
        if isinstance(record, RequestRecord):
            self._loop.call_soon_threadsafe(self.prompts.note_arrival, record.request_id)
        if self.traffic:
            self._tell_of_guests(record, self.traffic)

    def _tell_of_guests(self, record: Record, traffic: Traffic) -> None:
        """Tell the demo traffic which requests of others came and ended."""
        ended: list[str] = []
        if isinstance(record, RequestRecord) and not record.request_id.startswith(DEMO):
            self._loop.call_soon_threadsafe(traffic.guest_came, record.request_id)
        elif isinstance(record, ResetRecord):
            self._loop.call_soon_threadsafe(traffic.all_guests_left)
        elif isinstance(record, AbortRecord):
            ended = [record.request_id]
        elif isinstance(record, StepRecord):
            ended = [request_id for request_id, _ in record.finished]
        for request_id in ended:
            if not request_id.startswith(DEMO):
                self._loop.call_soon_threadsafe(traffic.guest_left, request_id)

    def _change_pace(self, change: Callable[[], None]) -> None:
        def change_and_tell() -> None:
            change()
            self._publish(self._controls())

        self._engine.between_steps(change_and_tell)

    def _greet(self, viewer: Viewer) -> None:
        """Create the first lines of a viewer in the engine's thread."""

        def greet() -> None:
            lines = self._first_lines()
            self._loop.call_soon_threadsafe(self._feed.admit, viewer, lines)

        self._engine.between_steps(greet)

    def _first_lines(self) -> bytes:
        snapshot = self._take_snapshot()
        tokens = [*snapshot.contents.values(), *(each.token_ids for each in snapshot.requests)]
        self._encoder.forget()
        texts = self._encoder.encode_texts({token_id for ids in tokens for token_id in ids})
        state = to_json({"kind": "snapshot", "state": snapshot}) + b"\n"
        return encode_header(self._header) + self._controls() + texts + state

    def _take_snapshot(self) -> Snapshot:
        return take_snapshot(self._scheduler, self._contents, self._step)

    def _controls(self) -> bytes:
        controls = {
            "kind": "controls",
            "pace": self.pace.state,
            "traffic": self.traffic.settings if self.traffic else None,
            "touring": self.touring,
            "are_chats": self.prompts.are_chats,
        }
        return to_json(controls) + b"\n"

    def _publish(self, lines: bytes) -> None:
        self._loop.call_soon_threadsafe(self._feed.publish, lines)
