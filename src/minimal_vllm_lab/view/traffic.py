"""Demo traffic for the view."""

import asyncio
from collections.abc import Callable
from importlib import resources
from random import Random
from typing import TYPE_CHECKING

from minimal_vllm.outputs import OutputKind
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.server.engine_client import EngineFailedError, EngineRequest, EngineStoppedError
from minimal_vllm_lab.view.traffic_settings import TrafficSettings

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from minimal_vllm.llm import LLM
    from minimal_vllm.server.async_engine import AsyncEngine

DEMO = "demo-"
"""Beginning of the id of each demo request."""

MAX_WAITING = 12
"""Maximum number of waiting requests. No new ones are made while it is reached."""

IDLE_SECONDS = 0.5
"""Seconds until the next request if the engine is idle, and therefore makes no steps."""


class Traffic:
    """Send random requests to an engine. Belongs to the event loop.

    Args:
        engine: the engine to send requests to.
        llm: the engine's model and tokenizer.
        settings: rate and lengths; may be replaced at any time.
        is_paused: returns whether the engine is paused, in which case no requests are made.

    Attributes:
        settings: rate and lengths.
        is_held: True if no requests are made until it is set to False.
    """

    def __init__(
        self,
        engine: "AsyncEngine",
        llm: "LLM",
        settings: TrafficSettings,
        is_paused: Callable[[], bool],
    ) -> None:
        self.settings = settings
        self.is_held = False
        self._is_paused = is_paused
        self._engine = engine
        self._max_len = llm.built.scheduler_config.max_model_len
        self._random = Random(0)  # the same demo each time
        self._passages = llm.tokenizer.encode_batch(_read_passages())
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
        mean = self.settings.requests_per_100_steps / 100
        count = int(mean) + (self._random.random() < mean % 1)
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
        """Return a request: the shared prefix, followed by a random passage."""
        settings = self.settings
        num_output = min(self._around(settings.output_tokens), self._max_len - 1)
        num_prompt = min(self._around(settings.prompt_tokens), self._max_len - num_output)
        num_shared = min(settings.shared_prefix_tokens, num_prompt - 1)
        shared, *others = self._passages
        own = self._random.choice(others)
        self._num_made += 1
        return EngineRequest(
            request_id=f"{DEMO}{self._num_made}",
            prompt_token_ids=_cut(shared, num_shared) + _cut(own, num_prompt - num_shared),
            params=SamplingParams(
                max_tokens=num_output, ignore_eos=True, temperature=0.8, seed=self._num_made
            ),
            output_kind=OutputKind.FINAL_ONLY,
        )

    def _around(self, mean: int) -> int:
        return self._random.randint((mean + 1) // 2, max(1, 3 * mean // 2))

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


def _cut(tokens: list[int], length: int) -> list[int]:
    """Return ``length`` tokens, by repeating the tokens if there are too few."""
    return (tokens * (length // len(tokens) + 1))[:length]


def _read_passages() -> list[str]:
    """Return all passages; the first one is the shared prefix."""
    text = resources.files(__package__).joinpath("passages.txt").read_text(encoding="utf-8")
    return [" ".join(passage.split()) for passage in text.split("\n\n")]
