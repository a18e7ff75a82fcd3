"""``POST /v1/completions``."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response

from minimal_vllm.outputs import RequestOutput, TokenLogprobs
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.server.generation import STREAM_TOO, Answer, new_id, respond
from minimal_vllm.server.logprobs import CompletionLogprobsWriter, TokenNames, prompt_logprobs
from minimal_vllm.server.protocol import CompletionRequest
from minimal_vllm.server.responses import Completion, CompletionChoice, CompletionLogprobs, Usage
from minimal_vllm.server.service import Service
from minimal_vllm.server.structured import asked_constraint

DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""


class CompletionAnswer(Answer):
    """Text, and the prompt before it if it is to be echoed."""

    chunk_object = "text_completion"

    def __init__(
        self, service: Service, response_id: str, body: CompletionRequest, params: SamplingParams
    ) -> None:
        super().__init__(service, response_id, body.model)
        self._tokenizer = service.llm.get_tokenizer()
        self._body = body
        self._prompts = body.prompts
        self._params = params
        self._names = TokenNames(self._tokenizer, body.return_tokens_as_token_ids)
        self._logprobs: dict[int, CompletionLogprobsWriter] = {}
        self._begun: set[int] = set()

    def adapt(self, output: RequestOutput) -> RequestOutput:
        """Without the token that was generated only because the engine can't do with less."""
        if not self._body.only_echo:
            return output
        (completion,) = output.outputs
        nothing = replace(
            completion,
            text="",
            token_ids=[],
            logprobs=None if completion.logprobs is None else [],
            finish_reason="length",
            stop_reason=None,
        )
        return replace(output, outputs=[nothing])

    def whole(self, outputs: Sequence[RequestOutput], usage: Usage) -> Completion:
        """The whole answer."""
        choices = [
            CompletionChoice(**self._choice(place, output)) for place, output in enumerate(outputs)
        ]
        return Completion(object="text_completion", **self.envelope, choices=choices, usage=usage)

    def chunks(self, place: int, output: RequestOutput) -> list[dict[str, Any]]:
        """The new part of a choice, if there is any."""
        choice = self._choice(place, output)
        has_news = any(
            choice.get(name) for name in ("text", "finish_reason", "logprobs", "token_ids")
        )
        return [{"choices": [choice]}] if has_news else []

    def _choice(self, place: int, output: RequestOutput) -> dict[str, Any]:
        """A ``CompletionChoice`` of what is new; to a place's first, what comes before is added."""
        (completion,) = output.outputs
        is_first = place not in self._begun
        self._begun.add(place)
        echoed = self._prompt_text(place) if self._body.echo and is_first else ""
        choice = {
            "index": place,
            "text": echoed + completion.text,
            "logprobs": self._write_logprobs(place, output, is_first),
            "finish_reason": completion.finish_reason,
            "stop_reason": completion.stop_reason,
        }
        if self._body.return_token_ids:
            choice["token_ids"] = completion.token_ids
            if is_first:
                choice["prompt_token_ids"] = output.prompt_token_ids
        if self._body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs or [])
        return choice

    def _prompt_text(self, place: int) -> str:
        prompt = self._prompts[place // self._params.n]
        if isinstance(prompt, str):
            return prompt
        return self._tokenizer.decode(prompt, skip_special_tokens=self._params.skip_special_tokens)

    def _write_logprobs(
        self, place: int, output: RequestOutput, is_first: bool
    ) -> CompletionLogprobs | None:
        wanted = self._params.logprobs
        if wanted is None:
            return None
        (completion,) = output.outputs
        token_ids = completion.token_ids
        positions: list[TokenLogprobs | None] = [*(completion.logprobs or [])]
        if self._body.echo and is_first:
            token_ids = output.prompt_token_ids + token_ids
            positions = [*(output.prompt_logprobs or []), *positions]
        if place not in self._logprobs:
            self._logprobs[place] = CompletionLogprobsWriter(self._names, wanted)
        return self._logprobs[place].write(token_ids, positions)


def make_router(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/completions", response_model=Completion, responses=STREAM_TOO)
    async def create_completion(request: Request, body: CompletionRequest) -> Response:
        service.check_model(body.model)
        params = service.sampling_params(body, DEFAULT_MAX_TOKENS)
        service.check_size(len(body.prompts), params.n)
        constraint = asked_constraint(body.response_format, body.structured_outputs)
        params = await service.constrain(params, constraint)
        prompts = await service.encode(body.prompts, add_special_tokens=body.add_special_tokens)
        response_id = new_id("cmpl", request, body.request_id)
        requests = service.make_requests(response_id, body, prompts, params)
        answer = CompletionAnswer(service, response_id, body, params)
        return await respond(service, body, requests, params.n, answer)

    return router
