"""``POST /tokenize`` and ``POST /detokenize``."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Body

from minimal_vllm.server.errors import ApiError
from minimal_vllm.server.protocol import AnyTokenizeRequest, DetokenizeRequest, TokenizeChatRequest
from minimal_vllm.server.responses import Text, Tokens
from minimal_vllm.server.service import Service


def make_router(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter()
    tokenizer = service.llm.get_tokenizer()

    @router.post("/tokenize", response_model_exclude_unset=True)
    async def tokenize(body: Annotated[AnyTokenizeRequest, Body()]) -> Tokens:
        service.check_model(body.model)
        if isinstance(body, TokenizeChatRequest):
            prompt = await service.render_chat(body)
        else:
            prompt = body.prompt
        (token_ids,) = await service.encode([prompt], add_special_tokens=body.add_special_tokens)
        tokens = Tokens(count=len(token_ids), max_model_len=service.max_model_len, tokens=token_ids)
        if body.return_token_strs:
            tokens.token_strs = await asyncio.to_thread(list, map(tokenizer.token_text, token_ids))
        return tokens

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> Text:
        service.check_model(body.model)
        limit = service.llm.built.files.config.vocab_size
        if max(body.tokens, default=0) >= limit:
            raise ApiError(
                400,
                f"tokens: {max(body.tokens)} is none of the model's, which are 0 to {limit - 1}",
                param="tokens",
            )
        text = await asyncio.to_thread(tokenizer.decode, body.tokens, skip_special_tokens=False)
        return Text(prompt=text)

    return router
