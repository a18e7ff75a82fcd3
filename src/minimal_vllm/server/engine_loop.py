"""The engine loop: step after step, with commands in between, in a thread of its own."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Lock, Thread

from minimal_vllm.engine.engine import Engine
from minimal_vllm.outputs import RequestOutput
from minimal_vllm.server.engine_client import (
    EngineFailedError,
    EngineRequest,
    RequestRefusedError,
)
from minimal_vllm.server.metrics import Metrics
from minimal_vllm.server.pace import Pace

logger = logging.getLogger(__name__)

STOP_TIMEOUT = 10.0
"""Maximum number of seconds to wait for the last step."""

CallKey = object
"""Name that a client gives a call, which comes back with its outputs."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """New output of one request."""

    call: CallKey
    place: int
    """Place of the request in its call."""
    output: RequestOutput


class Outlet(ABC):
    """Way back to one client of the loop. All methods are called in the loop's thread.

    None of them waits for the client.
    """

    @abstractmethod
    def deliver(self, deliveries: Sequence[Delivery]) -> None:
        """Pass on all outputs that a step has for this client."""

    @abstractmethod
    def fail(self, call: CallKey, error: Exception) -> None:
        """Pass on the reason why the requests of a call could not be added."""

    @abstractmethod
    def aborted(self, call: CallKey, last: Sequence[tuple[int, RequestOutput]]) -> None:
        """Pass on the last outputs of aborted requests, with their places in the call."""

    @abstractmethod
    def die(self, error: EngineFailedError) -> None:
        """Pass on the reason why the loop has ended."""

    def settle(self) -> None:  # noqa: B027 - a client in this process need not know
        """Take notice that a step has ended, or that the engine is about to wait for requests."""


@dataclass(frozen=True, slots=True)
class _Owner:
    outlet: Outlet
    call: CallKey
    place: int


class EngineLoop:
    """Runs an engine in its own thread. No other code may use the engine from then on.

    Args:
        engine: an idle engine.
        metrics: metrics that are updated when requests arrive and end.
        pace: delays or pauses the engine between steps. Default: never.
        idle_work: work to do while there are no requests; taking an item does a piece. A request
            that arrives meanwhile waits until the piece is done.
    """

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        pace: Pace | None = None,
        idle_work: Iterable[None] = (),
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._pace = pace or Pace()
        self._idle_work = iter(idle_work)
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread = Thread(target=self._run, name="engine", daemon=True)
        self._outlets: list[Outlet] = []
        self._num_unread = 0
        self._counting = Lock()
        # State of the loop's thread:
        self._owners: dict[str, _Owner] = {}
        self._stopped = False

    # ---- in any thread --------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        self._metrics.watch(self._engine.scheduler, lambda: self.num_waiting)
        self._engine.watch(self._inbox.put)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread after its current step; a step that hangs is abandoned."""
        self._inbox.put(self._stop)
        self._thread.join(STOP_TIMEOUT)

    def connect(self, outlet: Outlet) -> None:
        """Let a client know if the loop dies, and when it settles."""
        self.between_steps(lambda: self._outlets.append(outlet))

    def disconnect(self, outlet: Outlet) -> None:
        """Abort all requests of a client that is gone, and forget it."""
        self.between_steps(lambda: self._disconnect(outlet))

    def add(self, requests: Sequence[EngineRequest], outlet: Outlet, call: CallKey) -> None:
        """Add requests, all or none."""
        with self._counting:
            self._num_unread += len(requests)
        self._inbox.put(lambda: self._add(requests, outlet, call))

    def abort(self, request_ids: Sequence[str], outlet: Outlet, call: CallKey) -> None:
        """Abort requests of a call; its outlet is told even if they have ended."""
        self._inbox.put(lambda: outlet.aborted(call, self._abort(request_ids, outlet, call)))

    def between_steps(self, command: Callable[[], None]) -> None:
        """Call ``command`` in the loop's thread, before its next step."""
        self._inbox.put(command)

    @property
    def num_waiting(self) -> int:
        """Number of requests that wait to be admitted, or to be added."""
        return len(self._engine.scheduler.waiting) + self._num_unread

    @property
    def num_running(self) -> int:
        """Number of requests that have been admitted and haven't ended."""
        return len(self._engine.scheduler.running)

    # ---- in the loop's thread -------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopped:
                self._take_commands()
                self._pace.step_begins()
                self._deliver(self._engine.step())
        except BaseException as error:
            logger.critical("The engine loop has died", exc_info=True)
            reason = f"the engine loop has died: {type(error).__name__}: {error}"
            for outlet in self._outlets:
                outlet.die(EngineFailedError(reason))

    def _take_commands(self) -> None:
        """Run the commands in the inbox, and wait for more until the next step is due."""
        while not self._stopped:
            has_work = self._engine.has_unfinished_requests
            if not has_work:
                self._settle()
                self._use_idle_time()
            try:
                command = self._inbox.get(
                    timeout=self._pace.seconds_to_wait() if has_work else None
                )
            except Empty:
                return
            command()

    def _use_idle_time(self) -> None:
        """Do idle work until a command comes or all is done."""
        for _ in self._idle_work:
            if not self._inbox.empty():
                return

    def _add(self, requests: Sequence[EngineRequest], outlet: Outlet, call: CallKey) -> None:
        with self._counting:
            self._num_unread -= len(requests)
        if outlet not in self._outlets:  # it has gone while a grammar was compiled for the call
            return
        added: list[str] = []
        try:
            for place, request in enumerate(requests):
                self._add_one(request)
                self._owners[request.request_id] = _Owner(outlet, call, place)
                added.append(request.request_id)
        except Exception as error:  # whatever is wrong with one request, the others continue
            self._abort(added, outlet, call)
            outlet.fail(call, _why_not_added(error))

    def _add_one(self, request: EngineRequest) -> None:
        self._engine.add_request(
            request.request_id,
            request.prompt_token_ids,
            request.params,
            output_kind=request.output_kind,
            priority=request.priority,
            cache_salt=request.cache_salt,
        )
        self._metrics.arrived(
            request.request_id,
            len(request.prompt_token_ids),
            request.params.max_tokens,
            request.num_choices,
        )

    def _abort(
        self, request_ids: Iterable[str], outlet: Outlet, call: CallKey
    ) -> list[tuple[int, RequestOutput]]:
        """Abort requests, and return the last output of each that had not ended."""
        last: list[tuple[int, RequestOutput]] = []
        for request_id in request_ids:
            owner = self._owners.get(request_id)
            # It may have ended meanwhile, and another may have taken its id.
            if owner is not None and owner.outlet is outlet and owner.call == call:
                del self._owners[request_id]
                output = self._engine.abort(request_id)
                if output is not None:
                    self._note_end(output)
                    last.append((owner.place, output))
        return last

    def _disconnect(self, outlet: Outlet) -> None:
        if outlet in self._outlets:
            self._outlets.remove(outlet)
        orphans = [(key, each) for key, each in self._owners.items() if each.outlet is outlet]
        for request_id, owner in orphans:
            self._abort([request_id], outlet, owner.call)

    def _note_end(self, output: RequestOutput) -> None:
        (completion,) = output.outputs
        self._metrics.ended(output.request_id, str(completion.finish_reason))

    def _stop(self) -> None:
        self._stopped = True

    def _deliver(self, outputs: Sequence[RequestOutput]) -> None:
        """Pass a step's outputs on, with one call for each client that has any."""
        mail: dict[Outlet, list[Delivery]] = {}
        for output in outputs:
            owner = self._owners[output.request_id]
            if output.finished:
                del self._owners[output.request_id]
                self._note_end(output)
            delivery = Delivery(owner.call, owner.place, output)
            mail.setdefault(owner.outlet, []).append(delivery)
        for outlet, deliveries in mail.items():
            outlet.deliver(deliveries)
        self._settle()

    def _settle(self) -> None:
        for outlet in self._outlets:
            outlet.settle()


def _why_not_added(error: Exception) -> Exception:
    if isinstance(error, ValueError):
        return RequestRefusedError(str(error))
    logger.error("A request could not be added", exc_info=error)
    return EngineFailedError(f"the request could not be added: {type(error).__name__}: {error}")
