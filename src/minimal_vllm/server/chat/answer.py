"""Answer to a chat: its models, and writing the generated text as one of them."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from minimal_vllm.outputs import CompletionOutput, Logprob, RequestOutput, TokenLogprobs
from minimal_vllm.server.chat.dialogue import Dialogue, MessageReaders
from minimal_vllm.server.chat.request import ChatCompletionRequest
from minimal_vllm.server.chunks import ChunkedAnswer
from minimal_vllm.server.logprobs import TokenNames, best_tokens, finite, prompt_logprobs
from minimal_vllm.server.message import MessageDelta, ToolCallDelta
from minimal_vllm.server.models import PromptLogprobs, Usage
from minimal_vllm.server.service import Service


class TokenLogprob(BaseModel):
    """Log-probability of one token."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TokenLogprob):
    """Log-probability of the chosen token, and those of the most probable ones."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities with one entry per token."""

    content: list[ChatTokenLogprob]


class CalledFunction(BaseModel):
    """Name of a function, and its arguments as JSON."""

    name: str
    arguments: str


class MessageCall(BaseModel):
    """Call of a function."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(BaseModel):
    """Message of the assistant."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    """Copy of ``reasoning``: vLLM has used both names, and clients read one or the other."""
    tool_calls: list[MessageCall] = []


class ChatChoice(BaseModel):
    """One answer to the conversation, with its message."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class ChatCompletion(BaseModel):
    """Answer of ``/v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    service_tier: None = None
    system_fingerprint: None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class ChatAnswer(ChunkedAnswer):
    """Answer that consists of messages of the assistant."""

    chunk_object = "chat.completion.chunk"

    def __init__(
        self, service: Service, response_id: str, body: ChatCompletionRequest, dialogue: Dialogue
    ) -> None:
        super().__init__(service, response_id, body)
        self._body = body
        self._messages = MessageReaders(dialogue, service.model.tokenizer.token_bytes)
        self._names = service.token_names(body)
        self._shows_only_text = not (dialogue.has_tags or body.return_token_ids or body.logprobs)

    def count_reasoning(self, index: int, output: RequestOutput) -> int:
        """Return the number of reasoning tokens in the new output of one choice."""
        return self._messages.count_reasoning(index, output.outputs[0])

    def whole(self, outputs: Sequence[RequestOutput], usage: Usage) -> ChatCompletion:
        """Return the whole answer."""
        answer = ChatCompletion(
            object="chat.completion",
            **self.envelope,
            choices=[
                ChatChoice(
                    index=index,
                    message=self._message(self._read(index, output.outputs[0])),
                    **self._details(index, output.outputs[0]),
                )
                for index, output in enumerate(outputs)
            ],
            usage=usage,
        )
        if self._body.return_token_ids:
            answer.prompt_token_ids = outputs[0].prompt_token_ids
        if self._body.prompt_logprobs is not None:
            answer.prompt_logprobs = prompt_logprobs(outputs[0].prompt_logprobs or [])
        return answer

    def chunks(self, index: int, output: RequestOutput) -> list[dict[str, Any]]:
        """Return the new part of a choice as one chunk, or no chunk if there is nothing new."""
        (completion,) = output.outputs
        part = self._read(index, completion)
        details = self._details(index, completion)
        if part or any(details.get(name) for name in ("finish_reason", "logprobs", "token_ids")):
            return [{"choices": [{"index": index, "delta": _delta(part), **details}]}]
        return []

    def only_text(self, index: int, output: RequestOutput) -> str | None:  # noqa: ARG002
        """Return the new text if the chunk would contain nothing else, else None."""
        (completion,) = output.outputs
        return completion.text if self._shows_only_text and not completion.finish_reason else None

    def text_chunk(self, index: int, text: str) -> dict[str, Any]:
        """Return the chunk that contains only a text."""
        nothing = {"logprobs": None, "finish_reason": None, "stop_reason": None, "token_ids": None}
        return {"choices": [{"index": index, "delta": {"content": text}, **nothing}]}

    def _details(self, index: int, completion: CompletionOutput) -> dict[str, Any]:
        """Return the fields of a choice besides its message."""
        details: dict[str, Any] = {
            "logprobs": self._write_logprobs(completion),
            "finish_reason": self._messages.finish_reason(index, completion),
            "stop_reason": completion.stop_reason,
        }
        details["token_ids"] = completion.token_ids if self._body.return_token_ids else None
        return details

    def opening(self, index: int, output: RequestOutput) -> list[dict[str, Any]]:
        """Return the chunk that names the role; the first of all has the prompt's tokens, too."""
        delta = {"role": "assistant", "content": self._body.echoed}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        if self._begun:
            return [{"choices": [choice]}]
        prompt = output.prompt_token_ids if self._body.return_token_ids else None
        return [{"choices": [choice], "prompt_token_ids": prompt}]

    def _read(self, index: int, completion: CompletionOutput) -> MessageDelta:
        """Return what the new text of a choice adds to its message."""
        delta = self._messages.read(index, completion)
        return delta if self._body.include_reasoning else delta.without_reasoning()

    def _message(self, part: MessageDelta) -> ChatMessage:
        """Return a whole message."""
        others = _reasoning(part)
        if part.calls:
            others["tool_calls"] = [_message_call(call) for call in part.calls]
        content = self._body.echoed + part.content
        return ChatMessage(role="assistant", content=content or (None if others else ""), **others)

    def _write_logprobs(self, completion: CompletionOutput) -> ChatLogprobs | None:
        if completion.logprobs is None:
            return None
        # Tokens that are named come with the chosen one, as in vLLM: all that there is.
        num_top = -1 if self._body.logprob_token_ids else self._body.top_logprobs or 0
        return chat_logprobs(self._names, num_top, completion.token_ids, completion.logprobs)


def _delta(part: MessageDelta) -> dict[str, Any]:
    """Return the ``delta`` of a chunk."""
    delta = _reasoning(part)
    if part.calls:
        delta["tool_calls"] = [_call_delta(call) for call in part.calls]
    if part.content or not delta:
        delta["content"] = part.content
    return delta


def _reasoning(part: MessageDelta) -> dict[str, Any]:
    """Return the reasoning under both of its names."""
    if not part.reasoning:
        return {}
    return {"reasoning": part.reasoning, "reasoning_content": part.reasoning}


def _message_call(call: ToolCallDelta) -> MessageCall:
    function = CalledFunction(name=call.name, arguments=call.arguments)
    return MessageCall(id=call.id, type="function", function=function)


def _call_delta(call: ToolCallDelta) -> dict[str, Any]:
    """Return the new part of a call; the first part of a call has its id, type and name."""
    if not call.id:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def chat_logprobs(
    names: TokenNames, num_top: int, token_ids: Iterable[int], positions: Iterable[TokenLogprobs]
) -> ChatLogprobs:
    """Return the log-probabilities of tokens in the form of ``/v1/chat/completions``."""

    def write(token_id: int, logprob: Logprob) -> TokenLogprob:
        return TokenLogprob(
            token=names[token_id],
            logprob=finite(logprob),
            bytes=list(names.tokenizer.token_bytes(token_id)),
        )

    return ChatLogprobs(
        content=[
            ChatTokenLogprob(
                **write(token_id, position[token_id]).model_dump(),
                top_logprobs=[
                    write(each, position[each]) for each in best_tokens(position, num_top)
                ],
            )
            for token_id, position in zip(token_ids, positions, strict=True)
        ]
    )
