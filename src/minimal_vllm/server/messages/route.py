"""``POST /v1/messages`` and ``POST /v1/messages/count_tokens``: the routes."""

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from minimal_vllm.server.api_model import dropped_keys
from minimal_vllm.server.chat.other_apis import prepare_translated
from minimal_vllm.server.chat.prompt import render_chat
from minimal_vllm.server.chat.route import log_dropped
from minimal_vllm.server.error_forms import AnthropicErrorBody
from minimal_vllm.server.generation import STREAM_TOO, new_id, respond
from minimal_vllm.server.json_body import JsonRoute
from minimal_vllm.server.messages.answer import MessageObject, MessagesAnswer
from minimal_vllm.server.messages.request import CountTokensRequest, MessagesRequest
from minimal_vllm.server.messages.translate import to_chat
from minimal_vllm.server.service import Service

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": AnthropicErrorBody},
    "5XX": {"model": AnthropicErrorBody},
}
"""Error responses, in the form of the routes' OpenAPI description."""


class TokenCount(BaseModel):
    """The answer of ``/v1/messages/count_tokens``."""

    input_tokens: int
    """Number of tokens of the prompt."""


def make_router(service: Service) -> APIRouter:
    """Return a router with these routes."""
    router = APIRouter(route_class=JsonRoute, responses=ERRORS)

    @router.post("/v1/messages", response_model=MessageObject, responses=STREAM_TOO)
    async def create_message(request: Request, body: MessagesRequest) -> Response:
        response_id = new_id("msg", request, body.request_id)
        chat = to_chat(body)
        prepared = await prepare_translated(service, body, chat, response_id)
        answer = MessagesAnswer(service, response_id, body, prepared.dialogue)
        return await respond(service, chat, prepared.requests, 1, answer)

    @router.post("/v1/messages/count_tokens")
    async def count_tokens(request: Request, body: CountTokensRequest) -> TokenCount:
        service.check_model(body.model)
        log_dropped(request.state.request_id, dropped_keys(body))
        prompt = await render_chat(service, to_chat(body))
        (token_ids,) = await service.encode([prompt], add_special_tokens=False)
        return TokenCount(input_tokens=len(token_ids))

    return router
