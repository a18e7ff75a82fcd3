"""``POST /v1/chat/completions``."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response

from minimal_vllm.outputs import CompletionOutput, RequestOutput
from minimal_vllm.server.dialogue import Dialogue, plan_dialogue
from minimal_vllm.server.generation import STREAM_TOO, Answer, new_id, respond
from minimal_vllm.server.logprobs import TokenNames, chat_logprobs, prompt_logprobs
from minimal_vllm.server.message import CallPart, MessagePart, Reader
from minimal_vllm.server.protocol import ChatCompletionRequest
from minimal_vllm.server.responses import (
    CalledFunction,
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    MessageCall,
    Usage,
)
from minimal_vllm.server.service import Service


class ChatAnswer(Answer):
    """Messages of the assistant."""

    chunk_object = "chat.completion.chunk"

    def __init__(
        self, service: Service, response_id: str, body: ChatCompletionRequest, dialogue: Dialogue
    ) -> None:
        super().__init__(service, response_id, body.model)
        self._body = body
        self._dialogue = dialogue
        self._names = TokenNames(service.llm.get_tokenizer(), body.return_tokens_as_token_ids)
        self._readers: dict[int, Reader] = {}
        self._have_calls: set[int] = set()

    def whole(self, outputs: Sequence[RequestOutput], usage: Usage) -> ChatCompletion:
        """The whole answer."""
        answer = ChatCompletion(
            object="chat.completion",
            **self.envelope,
            choices=[
                ChatChoice(
                    index=place,
                    message=_message(self._read(place, output.outputs[0])),
                    **self._details(place, output.outputs[0]),
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
        if place not in self._readers:
            if self._body.return_token_ids and not self._readers:
                chunks.append(self._role(place) | {"prompt_token_ids": output.prompt_token_ids})
            else:
                chunks.append(self._role(place))
        part = self._read(place, completion)
        details = self._details(place, completion)
        if part or any(details.get(name) for name in ("finish_reason", "logprobs", "token_ids")):
            chunks.append({"choices": [{"index": place, "delta": _delta(part), **details}]})
        return chunks

    def _read(self, place: int, completion: CompletionOutput) -> MessagePart:
        """What the new text of a choice says."""
        if place not in self._readers:
            self._readers[place] = self._dialogue.make_reader()
        reader, part = self._readers[place], MessagePart()
        reader.read(completion.text, part)
        if completion.finished():
            reader.finish(part)
        if part.calls:
            self._have_calls.add(place)
        return part

    def _details(self, place: int, completion: CompletionOutput) -> dict[str, Any]:
        """What a choice has beside its text, in a stream or not."""
        ends_with_calls = completion.finish_reason == "stop" and place in self._have_calls
        details: dict[str, Any] = {
            "logprobs": self._write_logprobs(completion),
            "finish_reason": self._dialogue.reason_of_calls
            if ends_with_calls
            else completion.finish_reason,
            "stop_reason": completion.stop_reason,
        }
        if self._body.return_token_ids:
            details["token_ids"] = completion.token_ids
        return details

    @staticmethod
    def _role(place: int) -> dict[str, Any]:
        delta = {"role": "assistant", "content": ""}
        choice = {"index": place, "delta": delta, "logprobs": None, "finish_reason": None}
        return {"choices": [choice]}

    def _write_logprobs(self, completion: CompletionOutput) -> ChatLogprobs | None:
        if completion.logprobs is None:
            return None
        num_top = self._body.top_logprobs or 0
        return chat_logprobs(self._names, num_top, completion.token_ids, completion.logprobs)


def _message(part: MessagePart) -> ChatMessage:
    """A message, of which this is all."""
    others = _reasoning(part)
    if part.calls:
        others["tool_calls"] = [_message_call(call) for call in part.calls.values()]
    content = None if others and not part.content else part.content
    return ChatMessage(role="assistant", content=content, **others)


def _delta(part: MessagePart) -> dict[str, Any]:
    """What is new of a message."""
    delta = _reasoning(part)
    if part.calls:
        delta["tool_calls"] = [_call_delta(place, call) for place, call in part.calls.items()]
    if part.content or not delta:
        delta["content"] = part.content
    return delta


def _reasoning(part: MessagePart) -> dict[str, Any]:
    """Under both names."""
    if not part.reasoning:
        return {}
    return {"reasoning": part.reasoning, "reasoning_content": part.reasoning}


def _message_call(call: CallPart) -> MessageCall:
    function = CalledFunction(name=call.name, arguments=call.arguments)
    return MessageCall(id=call.id, type="function", function=function)


def _call_delta(place: int, call: CallPart) -> dict[str, Any]:
    """What is new of a call; the first part has its id, type and name."""
    if not call.id:
        return {"index": place, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": place, "id": call.id, "type": "function", "function": function}


def make_router(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAM_TOO)
    async def create_chat_completion(request: Request, body: ChatCompletionRequest) -> Response:
        service.check_model(body.model)
        params = service.sampling_params(body, max_tokens=None)
        service.check_size(1, params.n)
        prompt = await service.render_chat(body)
        dialogue = plan_dialogue(service.config, body, prompt)
        if dialogue.has_tags and body.skip_special_tokens is None:
            params = replace(params, skip_special_tokens=False)
        params = await service.constrain(params, dialogue.constraint)
        (token_ids,) = await service.encode([prompt], add_special_tokens=body.add_special_tokens)
        response_id = new_id("chatcmpl", request, body.request_id)
        requests = service.make_requests(response_id, body, [token_ids], params)
        answer = ChatAnswer(service, response_id, body, dialogue)
        return await respond(service, body, requests, params.n, answer)

    return router
