"""``POST /tokenize``, ``POST /detokenize`` and ``GET /tokenizer_info``."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Body
from pydantic import BaseModel, Discriminator, Tag

from minimal_vllm.server.api_model import ApiModel
from minimal_vllm.server.chat.prompt import render_chat
from minimal_vllm.server.chat.request import ChatFields
from minimal_vllm.server.errors import ApiError
from minimal_vllm.server.json_body import JsonRoute
from minimal_vllm.server.models import TokenIds
from minimal_vllm.server.service import Service


class TokenizeRequest(ApiModel):
    """Body of ``POST /tokenize`` for a text."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeChatRequest(ChatFields):
    """Body of ``POST /tokenize`` for a conversation."""

    model: str | None = None
    return_token_strs: bool = False


def _kind_of_tokenize(body: Any) -> str:
    has_messages = "messages" in body if isinstance(body, dict) else hasattr(body, "messages")
    return "[chat]" if has_messages else "[text]"


AnyTokenizeRequest = Annotated[
    Annotated[TokenizeRequest, Tag("[text]")] | Annotated[TokenizeChatRequest, Tag("[chat]")],
    Discriminator(_kind_of_tokenize),
]
"""Body of ``POST /tokenize``."""


class DetokenizeRequest(ApiModel):
    """Body of ``POST /detokenize``."""

    model: str | None = None
    tokens: TokenIds


class Tokens(BaseModel):
    """Answer of ``/tokenize``."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None
    """The tokens as the vocabulary writes them, such as ``Ġand`` for " and"; null unless asked for.
    """


class Text(BaseModel):
    """Answer of ``/detokenize``."""

    prompt: str


def make_router(service: Service) -> APIRouter:
    """Return a router with these routes."""
    router = APIRouter(route_class=JsonRoute)
    tokenizer = service.model.tokenizer

    @router.post("/tokenize")
    async def tokenize(body: Annotated[AnyTokenizeRequest, Body()]) -> Tokens:
        service.check_model(body.model)
        if isinstance(body, TokenizeChatRequest):
            prompt = await render_chat(service, body)
        else:
            prompt = body.prompt
        (token_ids,) = await service.encode([prompt], add_special_tokens=body.add_special_tokens)
        tokens = Tokens(count=len(token_ids), max_model_len=service.max_model_len, tokens=token_ids)
        if body.return_token_strs:
            names = map(tokenizer.backend.id_to_token, token_ids)
            tokens.token_strs = [str(name) for name in names]
        return tokens

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> Text:
        service.check_model(body.model)
        limit = service.model.facts.vocab_size
        if max(body.tokens, default=0) >= limit:
            raise ApiError(
                400,
                f"tokens: {max(body.tokens)} is not a token: they are 0 to {limit - 1}",
                param="tokens",
            )
        text = await asyncio.to_thread(tokenizer.decode, body.tokens, skip_special_tokens=False)
        return Text(prompt=text)

    @router.get("/tokenizer_info")
    async def tokenizer_info() -> dict[str, Any]:
        """Return the content of ``tokenizer_config.json``, and the chat template in use."""
        template = service.model.chat_template
        others = {"chat_template": template.source} if template else {}
        return {**tokenizer.config, **others}

    return router
