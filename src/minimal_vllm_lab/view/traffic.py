"""Demo traffic for the view."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from minimal_vllm.outputs import OutputKind
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.server.engine_client import EngineFailedError, EngineRequest, EngineStoppedError
from minimal_vllm_lab.view.demo_requests import DemoRequests, read_passages
from minimal_vllm_lab.view.traffic_settings import TrafficSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence

    from minimal_vllm.llm import LLM

DEMO = "demo-"
"""Beginning of the id of each demo request."""

MAX_WAITING = 12
"""Maximum number of waiting requests. No new ones are made while it is reached."""

IDLE_SECONDS = 0.5
"""Seconds until the next request if the engine is idle, and therefore makes no steps."""


class Destination(Protocol):
    """Where requests are sent to: an engine, or two."""

    @property
    def num_waiting(self) -> int:
        """Number of requests that wait to be admitted."""

    def generate(self, requests: "Sequence[EngineRequest]") -> "AsyncIterator[object]":
        """Serve requests, and yield whatever comes of them."""


class Traffic:
    """Send random requests to an engine. Belongs to the event loop.

    Args:
        engine: where to send requests to.
        llm: the engine's model and tokenizer.
        settings: rate and lengths; may be replaced at any time.
        is_paused: returns whether the engine is paused, in which case no requests are made.

    Attributes:
        settings: rate and lengths.
        is_held: true if no requests are made until it is set to False.
    """

    def __init__(
        self,
        engine: Destination,
        llm: "LLM",
        settings: TrafficSettings,
        is_paused: Callable[[], bool],
    ) -> None:
        self.settings = settings
        self.is_held = False
        self._is_paused = is_paused
        self._engine = engine
        self._demo = DemoRequests(
            llm.tokenizer.encode_batch(read_passages()),
            llm.built.scheduler_config.max_model_len,
            seed=0,  # the same demo each time
        )
        self._num_made = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._requests: list[asyncio.Task[None]] = []  # the demo requests, in order
        self._guests: set[str] = set()  # ids of the unfinished requests of others
        self._ticked = asyncio.Event()

    def start(self) -> None:
        """Start in the running event loop.

        ``on_step`` makes most requests. This starts a task that makes one when the engine is idle.
        """
        self._spawn(self._end_idleness())

    def stop(self) -> None:
        """Stop, and cancel all requests."""
        for task in self._tasks:
            task.cancel()

    def on_step(self) -> None:
        """Make new requests, if any are due. Called after each step of the engine."""
        self._ticked.set()
        if self._guests or self.is_held:
            return
        count = self._demo.count(self.settings)
        for _ in range(min(count, MAX_WAITING - self._engine.num_waiting)):
            self._send()

    async def hold(self) -> None:
        """Cancel all demo requests, and make none until ``is_held`` is set to False."""
        self.is_held = True
        requests = [*self._requests]
        for task in requests:
            task.cancel()
        await asyncio.gather(*requests, return_exceptions=True)

    def guest_came(self, request_id: str) -> None:
        """Make room for a request of somebody else: demo requests leave, the newest first.

        Half of the running ones stay. No new ones are made until all guests have left, so that a
        visitor's prompt is admitted at once and is not preempted.
        """
        if not self._guests:
            num_running = max(len(self._requests) - self._engine.num_waiting, 0)
            for task in self._requests[num_running // 2 :]:
                task.cancel()
        self._guests.add(request_id)

    def guest_left(self, request_id: str) -> None:
        """Note that a request of somebody else has ended."""
        self._guests.discard(request_id)

    def all_guests_left(self) -> None:
        """Note that the engine has forgotten all requests."""
        self._guests.clear()

    def _send(self) -> None:
        task = self._spawn(self._complete(self._make_request()))
        self._requests.append(task)
        task.add_done_callback(self._requests.remove)

    async def _end_idleness(self) -> None:
        while True:
            self._ticked.clear()
            try:
                await asyncio.wait_for(self._ticked.wait(), IDLE_SECONDS)
            except TimeoutError:
                is_idle = len(self._tasks) == 1  # only this task: no demo request is unfinished
                if is_idle and self.settings.requests_per_100_steps > 0 and self._may_send():
                    self._send()

    def _may_send(self) -> bool:
        return not (self.is_held or self._is_paused())

    def _make_request(self) -> EngineRequest:
        made = self._demo.make(self.settings)
        self._num_made += 1
        return EngineRequest(
            request_id=f"{DEMO}{self._num_made}",
            prompt_token_ids=made.prompt,
            params=SamplingParams(
                max_tokens=made.num_output, ignore_eos=True, temperature=0.8, seed=self._num_made
            ),
            output_kind=OutputKind.FINAL_ONLY,
        )

    async def _complete(self, request: EngineRequest) -> None:
        try:
            async for _ in self._engine.generate([request]):
                pass
        except (EngineFailedError, EngineStoppedError):
            pass  # the server reports it

    def _spawn(self, work: "Coroutine[None, None, None]") -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
