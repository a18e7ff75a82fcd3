"""The engine in a thread of this process, and its interface to the event loop.

There are two threads, and each piece of state belongs to one of them:

```
 event loop                                     engine thread
 generate ──── commands: add, abort, stop ────▶ inbox ──▶ between two steps
    ▲                                                         │
 mailbox ◀──── outputs, in one call per step ◀──────────── Engine.step
```

The engine never waits for a reader, which may be slow or gone: see ``mailbox``.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from minimal_vllm.engine.engine import Engine
from minimal_vllm.outputs import RequestOutput
from minimal_vllm.server.engine_client import Call, EngineClient, EngineFailedError
from minimal_vllm.server.engine_loop import CallKey, Delivery, EngineLoop, Outlet
from minimal_vllm.server.metrics import Metrics
from minimal_vllm.server.pace import Pace


class AsyncEngine(EngineClient):
    """Engine whose loop runs in another thread of this process; see ``EngineLoop``.

    Args:
        engine: an idle engine, which no other code may use from then on.
        metrics: metrics that are updated when requests arrive and end.
        pace: delays or pauses the engine between steps. Default: never.
        idle_work: see ``EngineLoop``.
    """

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        pace: Pace | None = None,
        idle_work: Iterable[None] = (),
    ) -> None:
        super().__init__()
        self._engine_loop = EngineLoop(engine, metrics, pace, idle_work)

    async def start(self) -> None:
        """Start the thread. Outputs go to the event loop that is running now."""
        self._outlet = EventLoopOutlet(asyncio.get_running_loop(), self._die)
        self._engine_loop.connect(self._outlet)
        self._engine_loop.start()

    async def stop(self) -> None:
        """Stop the thread after its current step; a step that hangs is abandoned."""
        await asyncio.to_thread(self._engine_loop.stop)

    @property
    def num_waiting(self) -> int:
        """Number of requests that wait to be admitted, or to be passed to the engine."""
        return self._engine_loop.num_waiting

    @property
    def num_running(self) -> int:
        """Number of requests that have been admitted and haven't ended."""
        return self._engine_loop.num_running

    def between_steps(self, command: Callable[[], None]) -> None:
        """Call ``command`` in the engine's thread, before its next step."""
        self._engine_loop.between_steps(command)

    def _send(self, call: Call) -> None:
        self._engine_loop.add(call.requests, self._outlet, call)

    def _abort(self, call: Call, places: Sequence[int]) -> None:
        request_ids = [call.requests[place].request_id for place in places]
        self._engine_loop.abort(request_ids, self._outlet, call)


class EventLoopOutlet(Outlet):
    """Way from the engine's thread to an event loop, in which the keys of calls are the calls.

    Args:
        loop: the event loop.
        on_death: called in the event loop if the engine loop dies.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_death: Callable[[EngineFailedError], None]
    ) -> None:
        self._loop = loop
        self._on_death = on_death

    def deliver(self, deliveries: Sequence[Delivery]) -> None:
        """Put all outputs of a step into their mailboxes."""
        self._loop.call_soon_threadsafe(_put_all, deliveries)

    def fail(self, call: CallKey, error: Exception) -> None:
        """Raise the error in the call's reader."""
        self._loop.call_soon_threadsafe(cast("Call", call).mailbox.fail, error)

    def aborted(self, call: CallKey, last: Sequence[tuple[int, RequestOutput]]) -> None:
        """Call the call's ``on_abort``."""
        on_abort = cast("Call", call).on_abort
        if on_abort is not None:
            self._loop.call_soon_threadsafe(on_abort, last)

    def die(self, error: EngineFailedError) -> None:
        """Raise the error in all readers."""
        self._loop.call_soon_threadsafe(self._on_death, error)


def _put_all(deliveries: Sequence[Delivery]) -> None:
    for delivery in deliveries:
        cast("Call", delivery.call).put(delivery.output)
