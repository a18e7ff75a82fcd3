"""``POST /v1/chat/completions``: the route, and the steps from a request to the engine's."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fastapi import APIRouter, Request, Response

from minimal_vllm.server.api_model import dropped_keys
from minimal_vllm.server.chat.answer import ChatAnswer, ChatCompletion
from minimal_vllm.server.chat.dialogue import Dialogue, plan_dialogue
from minimal_vllm.server.chat.prompt import render_chat
from minimal_vllm.server.chat.request import ChatCompletionRequest
from minimal_vllm.server.engine_client import EngineRequest
from minimal_vllm.server.generation import STREAM_TOO, new_id, respond
from minimal_vllm.server.json_body import JsonRoute
from minimal_vllm.server.service import Service

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PreparedChat:
    """A chat that is ready to be generated."""

    dialogue: Dialogue
    """Plan by which the model's text becomes messages."""
    requests: list[EngineRequest]
    """One for each choice, all with the same prompt."""


async def prepare_chat(
    service: Service, body: ChatCompletionRequest, response_id: str
) -> PreparedChat:
    """Check a chat's request, render and tokenize its prompt, and compile its constraint.

    Args:
        service: the model that answers.
        body: the request.
        response_id: the id of the answer, with which the ids of its engine requests begin.

    Raises:
        ApiError: the request can't be served; the message says why.
    """
    service.check_model(body.model)
    log_dropped(response_id, dropped_keys(body))
    params = service.sampling_params(body, max_tokens=None)
    service.check_size(1, params.n)
    prompt = await render_chat(service, body)
    dialogue = plan_dialogue(service.formats, body, prompt)
    if dialogue.has_tags and body.skip_special_tokens is None:
        params = replace(params, skip_special_tokens=False)
    params = await service.constrain(params, dialogue.constraint)
    (token_ids,) = await service.encode([prompt], add_special_tokens=body.add_special_tokens)
    (token_ids,) = service.truncate([token_ids], body, params.max_tokens)
    service.check_length([token_ids], body.client_field("prompt_token_ids"))
    requests = service.make_requests(response_id, body, [token_ids], params)
    return PreparedChat(dialogue, requests)


def log_dropped(response_id: str, keys: Iterable[str]) -> None:
    """Write the paths of keys that were dropped from a request's history to the log, if any."""
    dropped = sorted(set(keys))
    if dropped:
        logger.info("request_id=%s dropped=%.300s", response_id, ",".join(map(ascii, dropped)))


def make_router(service: Service) -> APIRouter:
    """Return a router with this one route."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAM_TOO)
    async def create_chat_completion(request: Request, body: ChatCompletionRequest) -> Response:
        response_id = new_id("chatcmpl", request, body.request_id)
        chat = await prepare_chat(service, body, response_id)
        answer = ChatAnswer(service, response_id, body, chat.dialogue)
        return await respond(service, body, chat.requests, len(chat.requests), answer)

    return router
