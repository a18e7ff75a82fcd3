"""``POST /v1/completions``: its request, its answer, and its route."""

import codecs
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, model_validator

from minimal_vllm.outputs import FlatLogprobs, RequestOutput, TokenLogprobs
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.server.api_model import field_error
from minimal_vllm.server.chunks import ChunkedAnswer
from minimal_vllm.server.generation import STREAM_TOO, new_id, respond
from minimal_vllm.server.json_body import JsonRoute
from minimal_vllm.server.logprobs import TokenNames, best_tokens, finite, prompt_logprobs
from minimal_vllm.server.models import (
    Prompt,
    PromptLogprobs,
    SamplingFields,
    Texts,
    TokenIds,
    Usage,
)
from minimal_vllm.server.other_fields import OtherCompletionFields
from minimal_vllm.server.service import Service
from minimal_vllm.server.structured import asked_constraint

DEFAULT_MAX_TOKENS = 16
"""Default of ``max_tokens``, the same as OpenAI's."""


class CompletionRequest(SamplingFields, OtherCompletionFields):
    """Body of ``POST /v1/completions``."""

    prompt: (
        str
        | Annotated[TokenIds, Field(min_length=1)]
        | Annotated[Texts, Field(min_length=1)]
        | Annotated[list[TokenIds], Field(min_length=1, fail_fast=True)]
    )
    """One prompt or several, each as text or as token ids."""
    echo: bool = False
    """Begin each completion with its prompt; with ``max_tokens=0``, return the prompt alone."""
    logprobs: int | None = None
    """Number of most probable tokens to return log-probabilities of, besides the chosen one."""
    add_special_tokens: bool = True
    """Add the special tokens that the tokenizer puts around a text, usually a BOS token."""

    @model_validator(mode="after")
    def _named_tokens_have_a_place(self) -> "CompletionRequest":
        if self.logprob_token_ids and (self.logprobs is None or self.only_echo):
            raise field_error("logprob_token_ids", "needs logprobs, and tokens that are generated")
        return self

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts as a list."""
        prompt = self.prompt
        if isinstance(prompt, str) or isinstance(prompt[0], int):
            return [prompt]
        return list(prompt)

    @property
    def only_echo(self) -> bool:
        """True if no token is asked for beyond the prompt."""
        return self.echo and self.max_tokens == 0

    def client_field(self, name: str) -> str:
        """Return the field from which a sampling parameter comes."""
        if name == "prompt_token_ids":
            return "prompt"
        from_logprobs = name == "prompt_logprobs" and self.prompt_logprobs is None
        return "logprobs" if from_logprobs else name

    def _other_params(self) -> dict[str, Any]:
        others = {}
        if self.echo and self.prompt_logprobs is None and self.logprobs is not None:
            others["prompt_logprobs"] = self.logprobs
        if self.only_echo:
            others["max_tokens"] = 1  # which is thrown away: the engine always gives a token
        return others


class CompletionLogprobs(BaseModel):
    """Log-probabilities as parallel lists with one entry per token."""

    text_offset: list[int]
    """Offsets of the tokens in the choice's text, in characters."""
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(BaseModel):
    """One completion, or its new part in a stream."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class Completion(BaseModel):
    """Answer of ``/v1/completions``, or one chunk of it."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    service_tier: None = None
    system_fingerprint: None = None


class CompletionAnswer(ChunkedAnswer):
    """Answer that consists of the generated texts, each after its prompt if that is echoed."""

    chunk_object = "text_completion"

    def __init__(
        self, service: Service, response_id: str, body: CompletionRequest, params: SamplingParams
    ) -> None:
        super().__init__(service, response_id, body)
        self._tokenizer = service.model.tokenizer
        self._body = body
        self._prompts = body.prompts
        self._params = params
        self._names = service.token_names(body)
        self._logprobs: dict[int, CompletionLogprobsWriter] = {}
        self._opened: set[int] = set()
        self._shows_only_text = not (body.return_token_ids or params.asked_logprobs is not None)

    def adapt(self, output: RequestOutput) -> RequestOutput:
        """Return the output without the token that the engine generates if none is asked for."""
        if not self._body.only_echo:
            return output
        (completion,) = output.outputs
        nothing = replace(
            completion,
            text="",
            token_ids=[],
            logprobs=None if completion.logprobs is None else FlatLogprobs(),
            finish_reason="length",
            stop_reason=None,
        )
        return replace(output, outputs=[nothing])

    def whole(self, outputs: Sequence[RequestOutput], usage: Usage) -> Completion:
        """Return the whole answer."""
        choices = [
            CompletionChoice(**self._choice(index, output)) for index, output in enumerate(outputs)
        ]
        return Completion(object="text_completion", **self.envelope, choices=choices, usage=usage)

    def chunks(self, index: int, output: RequestOutput) -> list[dict[str, Any]]:
        """Return the new part of a choice as one chunk, or no chunk if there is nothing new."""
        choice = self._choice(index, output)
        has_news = any(
            choice.get(name) for name in ("text", "finish_reason", "logprobs", "token_ids")
        )
        return [{"choices": [choice]}] if has_news else []

    def only_text(self, index: int, output: RequestOutput) -> str | None:  # noqa: ARG002
        """Return the new text if the chunk would contain nothing else, else None."""
        (completion,) = output.outputs
        return completion.text if self._shows_only_text and not completion.finish_reason else None

    def text_chunk(self, index: int, text: str) -> dict[str, Any]:
        """Return the chunk that contains only a text."""
        nothing = {"logprobs": None, "finish_reason": None, "stop_reason": None}
        return {"choices": [{"index": index, "text": text, **nothing}]}

    def _choice(self, index: int, output: RequestOutput) -> dict[str, Any]:
        """Return the fields of a ``CompletionChoice``; the first one of a choice has the echo."""
        (completion,) = output.outputs
        is_first = index not in self._opened
        self._opened.add(index)
        echoed = self._prompt_text(index, output) if self._body.echo and is_first else None
        choice = {
            "index": index,
            "text": (echoed or "") + completion.text,
            "logprobs": self._write_logprobs(index, output, echoed),
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

    def _prompt_text(self, index: int, output: RequestOutput) -> str:
        """Return the text that was sent; of tokens, what they stand for, as in vLLM."""
        prompt = self._prompts[index // self._params.n]
        if isinstance(prompt, str) and self._body.truncate_prompt_tokens is None:
            return prompt
        return self._tokenizer.decode(output.prompt_token_ids, skip_special_tokens=False)

    def _write_logprobs(
        self, index: int, output: RequestOutput, echoed: str | None
    ) -> CompletionLogprobs | None:
        wanted = self._params.asked_logprobs
        if wanted is None:
            return None
        num_top = wanted if isinstance(wanted, int) else -1
        if index not in self._logprobs:
            skips = self._params.skip_special_tokens
            hidden = self._tokenizer.special_token_ids if skips else ()
            self._logprobs[index] = CompletionLogprobsWriter(self._names, num_top, hidden)
        writer, (completion,) = self._logprobs[index], output.outputs
        generated = (completion.token_ids, completion.logprobs or FlatLogprobs())
        if echoed is None:
            return writer.write(*generated)
        prompt = writer.write(output.prompt_token_ids, output.prompt_logprobs or [], echoed)
        text = writer.write(*generated)
        return CompletionLogprobs(
            text_offset=prompt.text_offset + text.text_offset,
            token_logprobs=prompt.token_logprobs + text.token_logprobs,
            tokens=prompt.tokens + text.tokens,
            top_logprobs=prompt.top_logprobs + text.top_logprobs,
        )


class CompletionLogprobsWriter:
    """Writes the log-probabilities of one choice of ``/v1/completions``, part by part.

    Args:
        names: names of the tokens.
        num_top: number of most probable tokens to write; -1: all.
        hidden: tokens that the generated text leaves out.
    """

    def __init__(self, names: TokenNames, num_top: int, hidden: Collection[int]) -> None:
        self._names = names
        self._num_top = num_top
        self._hidden = hidden
        self._offset = 0
        # A character may be spread over tokens: it belongs to the one that completes it.
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def write(
        self,
        token_ids: Iterable[int],
        positions: Iterable[TokenLogprobs | None],
        echoed: str | None = None,
    ) -> CompletionLogprobs:
        """Return the log-probabilities of the next tokens.

        Args:
            token_ids: the tokens.
            positions: log-probabilities for each; None for a prompt's first token, which nothing
                precedes.
            echoed: the prompt's text, if these are its tokens.
        """
        written = CompletionLogprobs(text_offset=[], token_logprobs=[], tokens=[], top_logprobs=[])
        for token_id, position in zip(token_ids, positions, strict=True):
            written.text_offset.append(self._offset)
            written.tokens.append(self._names[token_id])
            self._offset += self._length(token_id, echoed)
            if position is None:
                written.token_logprobs.append(None)
                written.top_logprobs.append(None)
            else:
                written.token_logprobs.append(finite(position[token_id]))
                written.top_logprobs.append(self._top(token_id, position))
        return written

    def _length(self, token_id: int, echoed: str | None) -> int:
        """Return the number of characters that a token contributes to the choice's text."""
        tokenizer = self._names.tokenizer
        if echoed is None:
            if token_id in self._hidden:
                return 0
            return len(self._utf8.decode(tokenizer.token_bytes(token_id)))
        spell = tokenizer.token_bytes if self._offset else tokenizer.first_token_bytes
        text = self._utf8.decode(spell(token_id))
        is_shown = token_id not in tokenizer.special_token_ids or echoed.startswith(
            text, self._offset
        )
        return len(text) if is_shown else 0

    def _top(self, chosen: int, position: TokenLogprobs) -> dict[str, float]:
        """Return the chosen token and the most probable ones, the best first.

        A token that has the name of another one here is written by its id.
        """
        named: dict[str, float] = {}
        for token_id in dict.fromkeys((chosen, *best_tokens(position, self._num_top))):
            name = self._names[token_id]
            name = f"token_id:{token_id}" if name in named else name
            named[name] = finite(position[token_id])
        return named


def make_router(service: Service) -> APIRouter:
    """Return a router with this one route."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/completions", response_model=Completion, responses=STREAM_TOO)
    async def create_completion(request: Request, body: CompletionRequest) -> Response:
        service.check_model(body.model)
        params = service.sampling_params(body, DEFAULT_MAX_TOKENS)
        service.check_size(len(body.prompts), params.n)
        constraint = asked_constraint(body.response_format, body.structured_outputs)
        params = await service.constrain(params, constraint)
        prompts = await service.encode(body.prompts, add_special_tokens=body.add_special_tokens)
        prompts = service.truncate(prompts, body, params.max_tokens)
        service.check_length(prompts, "prompt")
        response_id = new_id("cmpl", request, body.request_id)
        requests = service.make_requests(response_id, body, prompts, params)
        answer = CompletionAnswer(service, response_id, body, params)
        return await respond(service, body, requests, params.n, answer)

    return router
