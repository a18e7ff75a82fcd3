"""ASGI application: middleware and routes."""

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from minimal_vllm import __version__
from minimal_vllm.server import completions, status, tokens
from minimal_vllm.server.chat import route as chat
from minimal_vllm.server.error_forms import ErrorBody
from minimal_vllm.server.error_handlers import add_error_handlers
from minimal_vllm.server.messages import route as messages
from minimal_vllm.server.middleware import (
    CancelOnDisconnect,
    HeadAsGet,
    LimitBody,
    Observe,
    RequireKey,
)
from minimal_vllm.server.responses import route as responses
from minimal_vllm.server.service import Service


def make_app(service: Service) -> FastAPI:
    """Return the ASGI application that serves ``service``; the caller starts the engine."""
    app = FastAPI(
        title="minimal-vllm",
        version=__version__,
        root_path=service.config.root_path,
        middleware=_middleware(service),
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
    )
    add_error_handlers(app)
    for part in (completions, chat, responses, messages, tokens, status):
        app.include_router(part.make_router(service))
    if service.view:
        app.include_router(service.view.routes())
    return app


def _middleware(service: Service) -> list[Middleware]:
    """Return the middleware, outermost first."""
    config, layers = service.config, []
    if config.allowed_origins:
        layers.append(
            Middleware(
                CORSMiddleware,
                allow_origins=config.allowed_origins,
                allow_methods=config.allowed_methods or ["GET", "POST"],
                allow_headers=config.allowed_headers or ["*"],
                allow_credentials=config.allow_credentials,
            )
        )
    layers.append(Middleware(Observe, metrics=service.metrics))
    if config.api_key:
        layers.append(Middleware(RequireKey, keys=config.api_key))
    layers.append(Middleware(LimitBody, max_bytes=config.max_body_bytes))
    layers.append(Middleware(HeadAsGet))
    layers.append(Middleware(CancelOnDisconnect))
    return layers
