"""``POST /v1/responses``: the route."""

from fastapi import APIRouter, Request, Response

from minimal_vllm.server.chat.other_apis import prepare_translated
from minimal_vllm.server.generation import STREAM_TOO, new_id, respond
from minimal_vllm.server.json_body import JsonRoute
from minimal_vllm.server.responses.answer import ResponseObject, ResponsesAnswer
from minimal_vllm.server.responses.request import ResponsesRequest
from minimal_vllm.server.responses.translate import to_chat
from minimal_vllm.server.service import Service


def make_router(service: Service) -> APIRouter:
    """Return a router with this one route."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/responses", response_model=ResponseObject, responses=STREAM_TOO)
    async def create_response(request: Request, body: ResponsesRequest) -> Response:
        response_id = new_id("resp", request, body.request_id)
        chat = to_chat(body)
        prepared = await prepare_translated(service, body, chat, response_id)
        params = prepared.requests[0].params
        answer = ResponsesAnswer(service, response_id, body, prepared.dialogue, params)
        return await respond(service, chat, prepared.requests, 1, answer)

    return router
