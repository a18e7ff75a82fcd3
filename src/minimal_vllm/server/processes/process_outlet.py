"""The engine loop's connection to one HTTP process."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, cast

from minimal_vllm.outputs import RequestOutput
from minimal_vllm.sampling.grammar import GrammarCompiler
from minimal_vllm.server.engine_client import EngineFailedError
from minimal_vllm.server.engine_loop import CallKey, Delivery, EngineLoop, Outlet
from minimal_vllm.server.metrics import Metrics
from minimal_vllm.server.processes.channel import Channel
from minimal_vllm.server.processes.messages import (
    AbortCall,
    AddCall,
    Answered,
    AskMetrics,
    CallAborted,
    CallFailed,
    Counts,
    EngineDied,
    MetricsText,
    NewTokens,
    StepOutputs,
)


class ProcessOutlet(Outlet):
    """Passes an HTTP process's requests to the engine loop, and their outputs back.

    All messages of a step are sent to the process in one frame.

    Args:
        loop: the engine loop.
        metrics: the metrics of the whole server.
        grammars: the engine's compiler of grammars.
        compilers: threads in which grammars are compiled, which may take seconds.
        channel: socket to the process.
    """

    def __init__(
        self,
        loop: EngineLoop,
        metrics: Metrics,
        grammars: GrammarCompiler,
        compilers: ThreadPoolExecutor,
        channel: Channel,
    ) -> None:
        self._loop = loop
        self._metrics = metrics
        self._grammars = grammars
        self._compilers = compilers
        self._channel = channel
        self._unsent: list[Any] = []
        self._counts = Counts()
        self._num_received = 0
        self._compiling: dict[int, Future[None]] = {}

    # ---- from the process, in the thread that receives ------------------------------------------

    def take(self, message: Any) -> None:
        """Take in a message of the process."""
        match message:
            case AddCall():
                self._num_received += len(message.requests)
                self._add(message)
            case AbortCall():
                self._abort(message)
            case Answered(handler, method, status, seconds):
                self._metrics.answered(handler, method, status, seconds)
            case AskMetrics():
                self._channel.send([MetricsText(message.number, self._metrics.text())])

    def _add(self, message: AddCall) -> None:
        constraint = message.requests[0].params.structured_outputs
        if constraint is None:
            self._loop.add(message.requests, self, message.call)
            return

        def compile_and_add() -> None:
            with suppress(Exception):  # the engine finds out, too, and says why
                self._grammars.start(constraint)
            self._loop.add(message.requests, self, message.call)

        compiling = self._compilers.submit(compile_and_add)
        self._compiling[message.call] = compiling
        compiling.add_done_callback(lambda _: self._compiling.pop(message.call))

    def _abort(self, message: AbortCall) -> None:
        def abort(_: object = None) -> None:
            self._loop.abort(message.request_ids, self, message.call)

        compiling = self._compiling.get(message.call)
        if compiling is None:
            abort()
        else:
            compiling.add_done_callback(abort)  # requests can't be aborted before they are added

    # ---- to the process, in the loop's thread ---------------------------------------------------

    def deliver(self, deliveries: Sequence[Delivery]) -> None:
        """Keep a step's outputs until the step has settled."""
        outputs = [
            tuple(NewTokens.of(cast("int", each.call), each.place, each.output))
            for each in deliveries
        ]
        self._unsent.append(StepOutputs(outputs))

    def settle(self) -> None:
        """Send the step's outputs, and the numbers of requests if they have changed."""
        counts = Counts(self._loop.num_waiting, self._loop.num_running, self._num_received)
        if counts != self._counts:
            self._counts = counts
            self._unsent.append(counts)
        if self._unsent:
            self._channel.send(self._unsent)
            self._unsent = []

    def fail(self, call: CallKey, error: Exception) -> None:
        """Send the reason why a call's requests could not be added."""
        self._channel.send([CallFailed(cast("int", call), error)])

    def aborted(self, call: CallKey, last: Sequence[tuple[int, RequestOutput]]) -> None:
        """Send the last outputs of aborted requests."""
        number = cast("int", call)
        outputs = [NewTokens.of(number, place, output) for place, output in last]
        self._channel.send([CallAborted(number, outputs)])

    def die(self, error: EngineFailedError) -> None:
        """Send the reason why the engine has ended."""
        self._channel.send([*self._unsent, EngineDied(str(error))])
