"""The engine as the HTTP side sees it: requests in, outputs out, in one event loop.

``AsyncEngine`` has the engine in another thread of this process, ``RemoteEngine`` in another
process.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from minimal_vllm.outputs import OutputKind, RequestOutput
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.server.mailbox import Mailbox

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
    num_choices: int = 1
    """Number of completions of the prompt that are asked for, if this is the first; else 0."""


@dataclass(eq=False, slots=True)
class Call:
    """Requests that are added together, and whose outputs have one reader."""

    requests: Sequence[EngineRequest]
    mailbox: Mailbox
    on_abort: OnAbort | None = None
    """Called in the event loop with the last outputs of requests that were aborted."""

    def put(self, output: RequestOutput) -> None:
        """Give an output to the reader; that of a request that failed ends them all."""
        (completion,) = output.outputs
        if completion.finish_reason == "error":
            reason = f"the engine failed: {completion.stop_reason}"
            self.mailbox.fail(EngineFailedError(reason))
        else:
            self.mailbox.put(output)


class EngineClient(ABC):
    """Engine to which the event loop sends requests. All methods are called in the event loop."""

    def __init__(self) -> None:
        self._readers: set[Mailbox] = set()
        self._refusal: Exception | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._dead = asyncio.Event()

    # ---- what differs ---------------------------------------------------------------------------

    @abstractmethod
    async def start(self) -> None:
        """Connect the engine to the event loop that is running now."""

    @abstractmethod
    async def stop(self) -> None:
        """End the connection to the engine."""

    @property
    @abstractmethod
    def num_waiting(self) -> int:
        """Number of requests that wait to be admitted, or to be passed to the engine."""

    @property
    @abstractmethod
    def num_running(self) -> int:
        """Number of requests that have been admitted and haven't ended."""

    @abstractmethod
    def _send(self, call: Call) -> None:
        """Pass requests to the engine, which adds all or none."""

    @abstractmethod
    def _abort(self, call: Call, places: Sequence[int]) -> None:
        """Abort some of a call's requests, given by their places in the call."""

    # ---- what all have in common ----------------------------------------------------------------

    @property
    def refusal(self) -> Exception | None:
        """Reason why no more requests are accepted; None while requests are accepted."""
        return self._refusal

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
        call = Call(requests, mailbox, on_abort)
        self._join(mailbox)
        self._send(call)
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
                self._abort(call, list(unfinished.values()))

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
        """Return if the engine fails; ``refusal`` is then its error."""
        await self._dead.wait()

    def _die(self, error: EngineFailedError) -> None:
        self._refusal = error
        self.end_all(error)
        self._dead.set()

    def _join(self, mailbox: Mailbox) -> None:
        self._readers.add(mailbox)
        self._idle.clear()

    def _leave(self, mailbox: Mailbox) -> None:
        self._readers.discard(mailbox)
        if not self._readers:
            self._idle.set()


def _whose_fault(error: EngineFailedError, params: SamplingParams) -> Exception:
    """Return the error to raise. It blames the request if the request itself forbids all tokens."""
    reason = str(error).removeprefix("the engine failed: ")
    restricted_by = ", ".join(name for name in RESTRICTIONS if getattr(params, name))
    if restricted_by and reason.startswith("no token could be sampled"):
        return RequestRefusedError(f"{reason}; tokens are restricted by {restricted_by}")
    return error
