"""``POST /v1/chat/completions``."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from minimal_vllm.outputs import CompletionOutput, RequestOutput
from minimal_vllm.server.generation import STREAM_TOO, Answer, new_id, respond
from minimal_vllm.server.logprobs import TokenNames, chat_logprobs, prompt_logprobs
from minimal_vllm.server.protocol import ChatCompletionRequest
from minimal_vllm.server.responses import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    Usage,
)
from minimal_vllm.server.service import Service


class ChatAnswer(Answer):
    """Messages of the assistant."""

    def __init__(self, service: Service, response_id: str, body: ChatCompletionRequest) -> None:
        super().__init__(service, response_id, body.model)
        self._body = body
        self._names = TokenNames(service.llm.get_tokenizer(), body.return_tokens_as_token_ids)
        self._begun: set[int] = set()

    def whole(self, outputs: Sequence[RequestOutput], usage: Usage) -> ChatCompletion:
        """The whole answer."""
        answer = ChatCompletion(
            object="chat.completion",
            **self.envelope,
            choices=[
                ChatChoice(
                    index=place,
                    message=ChatMessage(role="assistant", content=output.outputs[0].text),
                    **self._details(output.outputs[0]),
                )
                for place, output in enumerate(outputs)
            ],
            usage=usage,
        )
        if self._body.return_token_ids:
            answer.prompt_token_ids = outputs[0].prompt_token_ids
        if self._body.prompt_logprobs is not None:
            answer.prompt_logprobs = prompt_logprobs(outputs[0].prompt_logprobs or [])
        return answer

    def chunks(self, place: int, output: RequestOutput) -> list[dict[str, Any]]:
        """The new part of a choice, if there is any."""
        (completion,) = output.outputs
        chunks: list[dict[str, Any]] = []
        if place not in self._begun:
            if self._body.return_token_ids and not self._begun:
                chunks.append(self._role(place) | {"prompt_token_ids": output.prompt_token_ids})
            else:
                chunks.append(self._role(place))
            self._begun.add(place)
        choice = ChatChunkChoice(
            index=place, delta=ChatDelta(content=completion.text), **self._details(completion)
        )
        if completion.text or choice.finish_reason or choice.logprobs or choice.token_ids:
            chunks.append({"choices": [choice]})
        return chunks

    def chunk(self, fields: dict[str, Any]) -> ChatCompletionChunk:
        """A chunk with these fields."""
        return ChatCompletionChunk(object="chat.completion.chunk", **self.envelope, **fields)

    def _details(self, completion: CompletionOutput) -> dict[str, Any]:
        """What a choice has beside its text, in a stream or not."""
        details: dict[str, Any] = {
            "logprobs": self._write_logprobs(completion),
            "finish_reason": completion.finish_reason,
            "stop_reason": completion.stop_reason,
        }
        if self._body.return_token_ids:
            details["token_ids"] = completion.token_ids
        return details

    @staticmethod
    def _role(place: int) -> dict[str, Any]:
        delta = ChatDelta(role="assistant", content="")
        choice = ChatChunkChoice(index=place, delta=delta, logprobs=None, finish_reason=None)
        return {"choices": [choice]}

    def _write_logprobs(self, completion: CompletionOutput) -> ChatLogprobs | None:
        if completion.logprobs is None:
            return None
        num_top = self._body.top_logprobs or 0
        return chat_logprobs(self._names, num_top, completion.token_ids, completion.logprobs)


def make_router(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAM_TOO)
    async def create_chat_completion(request: Request, body: ChatCompletionRequest) -> Response:
        service.check_model(body.model)
        params = service.sampling_params(body, max_tokens=None)
        service.check_size(1, params.n)
        prompt = await service.encode_chat(body)
        response_id = new_id("chatcmpl", request, body.request_id)
        requests = service.make_requests(response_id, body, [prompt], params)
        answer = ChatAnswer(service, response_id, body)
        return await respond(service, body, requests, params.n, answer)

    return router
