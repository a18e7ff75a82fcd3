"""The HTTP side of a cluster: our server's application, before a ``ClusterEngine``."""

import asyncio
from typing import Any

from ray import serve
from starlette.types import ASGIApp, Receive, Scope, Send

from minimal_vllm.cluster.engine import ClusterEngine, ClusterMetrics
from minimal_vllm.server.app import make_app
from minimal_vllm.server.config import ServerConfig
from minimal_vllm.server.log import log_to_stderr
from minimal_vllm.server.served_model import ServedModel
from minimal_vllm.server.service import Service, choose_model_names


@serve.ingress()
class Ingress:
    """Deployment that speaks HTTP.

    Args:
        replicas: Ray's handle of the engine replicas.
        config: the server's options.
        model: as in ``LLM``.
    """

    async def __init__(  # type: ignore[misc] # Ray waits for it
        self, replicas: Any, config: ServerConfig, model: str | None
    ) -> None:
        log_to_stderr()
        facts = await replicas.facts.remote()
        served = await asyncio.to_thread(ServedModel.load, facts)
        names = choose_model_names(config, model)
        engine, metrics = ClusterEngine(replicas), ClusterMetrics(replicas, names[0])
        self._service = Service(served, engine, metrics, config, names)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application; Ray calls this once ``__init__`` has ended."""
        return WithState(make_app(self._service))


class WithState:
    """Gives each request the state in which our middleware keeps its notes, as uvicorn does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        scope.setdefault("state", {})
        await self._app(scope, receive, send)
