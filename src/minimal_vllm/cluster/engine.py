"""All replicas, as the ingress sees them: one engine."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from minimal_vllm.cluster.labels import join_metrics
from minimal_vllm.cluster.replica import ERRORS, Failed, Survey
from minimal_vllm.server.engine_client import (
    Call,
    EngineClient,
    EngineStoppedError,
)
from minimal_vllm.server.metrics import HttpMetrics

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 4
"""Maximum number of replicas that a call is sent to, one after the other, if each is lost before
there is output."""

LOST = (RayError, RayServeException)
"""Errors that mean that a replica, or the way to it, is gone."""


class ClusterEngine(EngineClient):
    """Engine that sends each call to the replica that the router chooses.

    A call whose replica is lost before any output has come is sent again, to another one. Once
    there is output, it fails instead, because the client has seen a part of it.

    Args:
        handle: Ray's handle of the replicas.
    """

    def __init__(self, handle: Any) -> None:
        super().__init__()
        self._handle = handle
        self._tasks: dict[Call, asyncio.Task[None]] = {}
        self._num_begun = 0

    async def start(self) -> None:
        """Do nothing: the replicas are there."""

    async def stop(self) -> None:
        """End all calls."""
        for task in self._tasks.values():
            task.cancel()

    @property
    def num_waiting(self) -> int:
        """Number of calls that have no output yet."""
        return len(self._tasks) - self._num_begun

    @property
    def num_running(self) -> int:
        """Number of calls that have output, and haven't ended."""
        return self._num_begun

    def _send(self, call: Call) -> None:
        task = asyncio.create_task(self._run(call))
        self._tasks[call] = task
        task.add_done_callback(lambda _: self._tasks.pop(call, None))

    def _abort(self, call: Call, places: Sequence[int]) -> None:  # noqa: ARG002 - a client leaves all
        task = self._tasks.get(call)
        if task is not None:
            task.cancel()
        if call.on_abort is not None:
            call.on_abort(())

    async def _run(self, call: Call) -> None:
        """Send a call, again if necessary, and pass on its outputs."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            attempted = _Attempt(call, self)
            try:
                failed = await attempted.run(self._handle)
            except LOST as error:
                failed = Failed("EngineFailedError", f"a replica was lost: {_first_line(error)}")
                is_lost = True
            else:
                is_lost = failed is not None and failed.error == EngineStoppedError.__name__
            if failed is None:
                return
            if not is_lost or attempted.has_begun or attempt == MAX_ATTEMPTS:
                call.mailbox.fail(ERRORS[failed.error](failed.message))
                return
            logger.warning("A call is sent to another replica: %s", failed.message)

    def note_begun(self, change: int) -> None:
        """Change the number of calls that have output, and haven't ended, by ``change``."""
        self._num_begun += change


class _Attempt:
    """One try at one call."""

    def __init__(self, call: Call, engine: ClusterEngine) -> None:
        self.has_begun = False
        self._call = call
        self._engine = engine

    async def run(self, handle: Any) -> Failed | None:
        """Pass on the outputs of one replica; return why it failed, or None."""
        stream = handle.options(stream=True).generate.remote(list(self._call.requests))
        try:
            async for answer in stream:
                if isinstance(answer, Failed):
                    return answer
                self._begin()
                place, output = answer
                prompt = list(self._call.requests[place].prompt_token_ids)
                self._call.put(replace(output, prompt_token_ids=prompt))
            return None
        finally:
            if self.has_begun:
                self._engine.note_begun(-1)
            with suppress(*LOST):
                stream.cancel()  # which aborts the requests, unless they have ended

    def _begin(self) -> None:
        if not self.has_begun:
            self.has_begun = True
            self._engine.note_begun(1)


class ClusterMetrics:
    """Metrics of the ingress and of all replicas.

    Args:
        handle: Ray's handle of the replicas.
        model_name: value of the label ``model_name``.
    """

    def __init__(self, handle: Any, model_name: str) -> None:
        self._handle = handle
        self._http = HttpMetrics(model_name)

    def answered(self, handler: str, method: str, status: int, seconds: float) -> None:
        """Note that an HTTP request was answered by the route ``handler``, or ``none``."""
        self._http.answered(handler, method, status, seconds)

    async def render(self) -> bytes:
        """Return all metrics in Prometheus's text format, each with the name of its replica."""
        pages = {"ingress": self._http.text().decode()}
        while True:
            survey = Survey(frozenset(pages))
            try:
                name, page = await self._handle.metrics.remote(survey)
            except LOST:  # one that has just died
                await asyncio.sleep(0.1)
                continue
            if name in pages:
                return join_metrics(pages)
            pages[name] = page


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__
