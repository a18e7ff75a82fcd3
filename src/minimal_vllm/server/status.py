"""State of the server: models, health, load, version and metrics."""

from typing import Literal

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field

from minimal_vllm import __version__
from minimal_vllm.server.errors import ApiError
from minimal_vllm.server.service import Service


class ModelCard(BaseModel):
    """One name of the model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None = None
    max_model_len: int


class ModelList(BaseModel):
    """Answer of ``/v1/models``."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(BaseModel):
    """Answer of ``/health``."""

    status: str = Field(examples=["ok"])


class Load(BaseModel):
    """Answer of ``/load``."""

    server_load: int
    """Number of running and waiting requests."""


class Version(BaseModel):
    """Answer of ``/version``."""

    version: str


def make_router(service: Service) -> APIRouter:
    """Return a router with these routes."""
    router = APIRouter()

    def card(name: str) -> ModelCard:
        return ModelCard(
            id=name,
            object="model",
            created=service.created,
            owned_by="minimal-vllm",
            root=service.model.facts.name,
            max_model_len=service.max_model_len,
        )

    @router.get("/v1/models")
    async def list_models() -> ModelList:
        return ModelList(object="list", data=[card(name) for name in service.model_names])

    @router.get("/v1/models/{model:path}")
    async def retrieve_model(model: str) -> ModelCard:
        service.check_model(model)
        return card(model)

    @router.get("/health")
    async def health() -> Health:
        """200 while requests are served; 503 while the server shuts down or after a failure."""
        refusal = service.engine.refusal
        if refusal is not None:
            raise ApiError(503, str(refusal))
        return Health(status="ok")

    @router.api_route("/ping", methods=["GET", "POST"], include_in_schema=False)
    async def ping() -> Health:
        return await health()

    @router.get("/load")
    async def load() -> Load:
        engine = service.engine
        return Load(server_load=engine.num_waiting + engine.num_running)

    @router.get("/version")
    async def version() -> Version:
        return Version(version=__version__)

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(await service.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return router
