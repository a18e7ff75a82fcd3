"""A replica: one engine, whose requests come through Ray."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any

from ray import serve

from minimal_vllm.cluster.evictions import EvictionLog
from minimal_vllm.outputs import RequestOutput
from minimal_vllm.server.async_engine import AsyncEngine
from minimal_vllm.server.config import ServerConfig
from minimal_vllm.server.engine_client import (
    EngineFailedError,
    EngineRequest,
    EngineStoppedError,
    RequestRefusedError,
)
from minimal_vllm.server.errors import ENGINE_ERRORS
from minimal_vllm.server.log import log_to_stderr
from minimal_vllm.server.run import load_engine
from minimal_vllm.server.served_model import ModelFacts

ERRORS: dict[str, type[Exception]] = {
    each.__name__: each for each in (RequestRefusedError, EngineFailedError, EngineStoppedError)
}
"""Errors that a replica reports, by name."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of a call that failed."""

    error: str
    """Name in ``ERRORS``."""
    message: str


Answer = tuple[int, RequestOutput] | Failed
"""An output with the place of its request in the call, or the call's failure."""


@dataclass(frozen=True)
class Survey:
    """Question that is put to all replicas, one after the other."""

    asked: frozenset[str]
    """Replicas that have answered."""


class EngineReplica:
    """Deployment with one engine in it.

    Args:
        config: the server's options.
        model: as in ``LLM``.
        options: engine options, as in ``LLM``.
    """

    async def __init__(  # type: ignore[misc] # Ray waits for it
        self, config: ServerConfig, model: str | None, options: Any
    ) -> None:
        log_to_stderr()
        loaded = await asyncio.to_thread(lambda: load_engine(config, model, **options))
        self._facts = ModelFacts.of(loaded.llm)
        self._metrics = loaded.metrics
        self._grammars = loaded.llm.text.grammars
        self._evictions = EvictionLog()
        loaded.llm.engine.scheduler.pool.watchers.append(self._evictions)
        llm = loaded.llm
        self._engine = AsyncEngine(llm.engine, loaded.metrics, idle_work=llm.built.idle_work)
        await self._engine.start()

    # ---- what the ingress calls -----------------------------------------------------------------

    async def generate(self, requests: Sequence[EngineRequest]) -> AsyncGenerator[Answer, None]:
        """Complete prompts. Closing the generator aborts what is unfinished."""
        constraint = requests[0].params.structured_outputs
        if constraint is not None:
            with suppress(ValueError):  # the engine finds out, too, and says why
                await asyncio.to_thread(self._grammars.start, constraint)
        try:
            async with aclosing(self._engine.generate(requests)) as outputs:
                async for place, output in outputs:
                    # The caller has the prompt, which may be long.
                    yield place, replace(output, prompt_token_ids=[])
        except ENGINE_ERRORS as error:
            yield Failed(type(error).__name__, str(error))

    async def facts(self) -> ModelFacts:
        """Return what the ingress needs to know about the model."""
        return self._facts

    async def metrics(self, survey: Survey) -> tuple[str, str]:  # noqa: ARG002 - the router reads it
        """Return the replica's name, and its metrics in Prometheus's text format."""
        return serve.get_replica_context().replica_id.unique_id, self._metrics.text().decode()

    # ---- what Ray calls -------------------------------------------------------------------------

    def check_health(self) -> None:
        """Raise an error if the engine has failed: then Ray replaces the replica."""
        if self._engine.refusal is not None:
            raise self._engine.refusal

    def record_routing_stats(self) -> dict[str, Any]:
        """Return what the routers need to know; see ``ClusterRouter.update_replicas``."""
        return {
            "waiting": self._engine.num_waiting,
            "running": self._engine.num_running,
            "evictions": self._evictions.report(),
        }
