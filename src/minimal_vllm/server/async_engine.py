"""The engine loop in its own thread, and its interface to the event loop.

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
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread

from minimal_vllm.engine.engine import Engine
from minimal_vllm.outputs import OutputKind, RequestOutput
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.server.mailbox import Mailbox
from minimal_vllm.server.metrics import Metrics
from minimal_vllm.server.pace import Pace

logger = logging.getLogger(__name__)

STOP_TIMEOUT = 10.0
"""Maximum number of seconds to wait for the last step."""
RESTRICTIONS = ("allowed_token_ids", "bad_words", "structured_outputs")
"""Sampling parameters that may forbid all tokens, alone or together."""


OnAbort = Callable[[Sequence[tuple[int, RequestOutput]]], None]


class RequestRefusedError(Exception):
    """Error for a request that the engine can't serve; the message says why."""


class EngineFailedError(Exception):
    """Error for a request that could not be computed; the message says why."""


class EngineStoppedError(Exception):
    """Error if the engine accepts no more requests, or ended one early; the message says why."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One completion of one prompt; see ``Engine.add_request``."""

    request_id: str
    prompt_token_ids: Sequence[int]
    params: SamplingParams
    """Sampling parameters with ``n = 1``: n completions are n requests, each with its own id."""
    output_kind: OutputKind
    priority: int = 0
    cache_salt: str | None = None


class AsyncEngine:
    """Runs an engine in its own thread. No other code may use the engine from then on.

    Args:
        engine: an idle engine.
        metrics: metrics that are updated when requests arrive and end.
        pace: delays or pauses the engine between steps. Default: never.
    """

    def __init__(self, engine: Engine, metrics: Metrics, pace: Pace | None = None) -> None:
        self._engine = engine
        self._metrics = metrics
        self._pace = pace or Pace()
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread = Thread(target=self._run, name="engine", daemon=True)
        # State of the event loop:
        self._readers: set[Mailbox] = set()
        self._num_sent = 0
        self._refusal: Exception | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._dead = asyncio.Event()
        # State of the engine's thread:
        self._mailboxes: dict[str, Mailbox] = {}
        self._num_received = 0
        self._stopped = False

    # ---- in the event loop ----------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread. Outputs go to the event loop that is running now."""
        self._loop = asyncio.get_running_loop()
        self._metrics.watch(self._engine.scheduler, lambda: self.num_waiting)
        self._thread.start()

    async def stop(self) -> None:
        """Stop the thread after its current step; a step that hangs is abandoned."""
        self._inbox.put(self._stop)
        await asyncio.to_thread(self._thread.join, STOP_TIMEOUT)

    @property
    def refusal(self) -> Exception | None:
        """Reason why no more requests are accepted; None while requests are accepted."""
        return self._refusal

    @property
    def num_waiting(self) -> int:
        """Number of requests that wait to be admitted, or to be passed to the engine."""
        return len(self._engine.scheduler.waiting) + self._num_sent - self._num_received

    @property
    def num_running(self) -> int:
        """Number of requests that have been admitted and haven't ended."""
        return len(self._engine.scheduler.running)

    async def generate(
        self, requests: Sequence[EngineRequest], on_abort: OnAbort | None = None
    ) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        """Complete some prompts, all or none. Closing the generator aborts unfinished requests.

        Args:
            requests: one request for each completion.
            on_abort: called in the event loop with the last outputs of aborted requests.

        Yields:
            Outputs as they arrive, each with the index of its request in ``requests``.

        Raises:
            RequestRefusedError: a request can't be served, or allows no token.
            EngineFailedError: a request could not be computed.
            EngineStoppedError: the server shuts down.
        """
        if self._refusal is not None:
            raise self._refusal.with_traceback(None)
        mailbox = Mailbox()
        unfinished = {request.request_id: place for place, request in enumerate(requests)}
        if len(unfinished) < len(requests):
            raise RequestRefusedError("two requests have the same id")
        self._join(mailbox)
        self._num_sent += len(requests)
        self._inbox.put(partial(self._add, requests, mailbox))
        try:
            while unfinished:
                output = await mailbox.get()
                place = unfinished[output.request_id]
                if output.finished:
                    del unfinished[output.request_id]
                yield place, output
        except EngineFailedError as error:
            raise _whose_fault(error, requests[0].params) from error
        finally:
            self._leave(mailbox)
            if unfinished:
                self._inbox.put(partial(self._abort, dict(unfinished), mailbox, on_abort))

    def between_steps(self, command: Callable[[], None]) -> None:
        """Call ``command`` in the engine's thread, before its next step."""
        self._inbox.put(command)

    def refuse(self, reason: Exception) -> None:
        """Refuse new requests for this reason; running requests continue."""
        self._refusal = self._refusal or reason

    def end_all(self, reason: Exception) -> None:
        """End all unfinished requests with this error."""
        for mailbox in self._readers:
            mailbox.fail(reason)

    async def wait_until_idle(self) -> None:
        """Return once no reader waits for outputs."""
        await self._idle.wait()

    async def wait_until_dead(self) -> None:
        """Return if the engine loop fails; ``refusal`` is then its error."""
        await self._dead.wait()

    def _join(self, mailbox: Mailbox) -> None:
        self._readers.add(mailbox)
        self._idle.clear()

    def _leave(self, mailbox: Mailbox) -> None:
        self._readers.discard(mailbox)
        if not self._readers:
            self._idle.set()

    def _die(self, error: BaseException) -> None:
        self._refusal = EngineFailedError(
            f"the engine loop has died: {type(error).__name__}: {error}"
        )
        self.end_all(self._refusal)
        self._dead.set()

    # ---- in the engine's thread -----------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopped:
                self._take_commands()
                self._pace.step_begins()
                self._deliver(self._engine.step())
        except BaseException as error:
            logger.critical("The engine loop has died", exc_info=True)
            self._loop.call_soon_threadsafe(self._die, error)

    def _take_commands(self) -> None:
        """Run the commands in the inbox, and wait for more until the next step is due."""
        while not self._stopped:
            has_work = self._engine.has_unfinished_requests
            try:
                command = self._inbox.get(
                    timeout=self._pace.seconds_to_wait() if has_work else None
                )
            except Empty:
                return
            command()

    def _add(self, requests: Sequence[EngineRequest], mailbox: Mailbox) -> None:
        self._num_received += len(requests)
        added: list[str] = []
        try:
            for request in requests:
                self._add_one(request)
                self._mailboxes[request.request_id] = mailbox
                added.append(request.request_id)
        except Exception as error:  # whatever is wrong with one request, the others continue
            self._abort(dict.fromkeys(added, 0), mailbox)
            self._loop.call_soon_threadsafe(mailbox.fail, _why_not_added(error))

    def _add_one(self, request: EngineRequest) -> None:
        self._engine.add_request(
            request.request_id,
            request.prompt_token_ids,
            request.params,
            output_kind=request.output_kind,
            priority=request.priority,
            cache_salt=request.cache_salt,
        )
        self._metrics.arrived(request.request_id, len(request.prompt_token_ids))

    def _abort(
        self, places: Mapping[str, int], mailbox: Mailbox, on_abort: OnAbort | None = None
    ) -> None:
        """Abort some requests, given their indices among the requests of their call."""
        outputs: list[tuple[int, RequestOutput]] = []
        for request_id, place in places.items():
            # It may have ended meanwhile, and another may have taken its id.
            if self._mailboxes.get(request_id) is mailbox:
                del self._mailboxes[request_id]
                output = self._engine.abort(request_id)
                if output is not None:
                    self._metrics.ended(output)
                    outputs.append((place, output))
        if on_abort is not None:
            self._loop.call_soon_threadsafe(on_abort, outputs)

    def _stop(self) -> None:
        self._stopped = True

    def _deliver(self, outputs: Sequence[RequestOutput]) -> None:
        if not outputs:
            return
        mail = [(self._mailboxes[output.request_id], output) for output in outputs]
        for output in outputs:
            if output.finished:
                del self._mailboxes[output.request_id]
                self._metrics.ended(output)
        self._loop.call_soon_threadsafe(_put_all, mail)


def _whose_fault(error: EngineFailedError, params: SamplingParams) -> Exception:
    """Return the error to raise. It blames the request if the request itself forbids all tokens."""
    reason = str(error).removeprefix("the engine failed: ")
    restricted_by = ", ".join(name for name in RESTRICTIONS if getattr(params, name))
    if restricted_by and reason.startswith("no token could be sampled"):
        return RequestRefusedError(f"{reason}; tokens are restricted by {restricted_by}")
    return error


def _why_not_added(error: Exception) -> Exception:
    if isinstance(error, ValueError):
        return RequestRefusedError(str(error))
    logger.error("A request could not be added", exc_info=error)
    return EngineFailedError(f"the request could not be added: {type(error).__name__}: {error}")


def _put_all(mail: Sequence[tuple[Mailbox, RequestOutput]]) -> None:
    for mailbox, output in mail:
        (completion,) = output.outputs
        if completion.finish_reason == "error":
            mailbox.fail(EngineFailedError(f"the engine failed: {completion.stop_reason}"))
        else:
            mailbox.put(output)
