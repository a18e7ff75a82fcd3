"""The answer of ``/v1/messages``: its models, and how it is written, whole or as a stream."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from minimal_vllm.outputs import CompletionOutput, RequestOutput
from minimal_vllm.server.chat.dialogue import Dialogue, MessageReaders
from minimal_vllm.server.chunks import event
from minimal_vllm.server.error_forms import AnthropicErrorBody
from minimal_vllm.server.errors import ApiError
from minimal_vllm.server.generation import Answer, UsageCounter
from minimal_vllm.server.messages.answer_blocks import BlockWriter, Event
from minimal_vllm.server.messages.request import MessagesRequest
from minimal_vllm.server.models import Usage
from minimal_vllm.server.service import Service

StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]


class OutputTokensDetails(BaseModel):
    """Details of the answer."""

    thinking_tokens: int


class MessagesUsage(BaseModel):
    """Numbers of tokens; the prompt has as many as its three fields together."""

    input_tokens: int
    """Tokens of the prompt that were computed."""
    cache_read_input_tokens: int
    """Tokens of the prompt that were found in the prefix cache."""
    cache_creation_input_tokens: int
    """Tokens of the prompt that Anthropic charges for writing to its cache: none."""
    output_tokens: int
    output_tokens_details: OutputTokensDetails


class MessageObject(BaseModel):
    """The answer of ``/v1/messages``."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    """Blocks of the types ``text``, ``thinking`` and ``tool_use``."""
    stop_reason: StopReason | None
    stop_sequence: str | None
    """The one of ``stop_sequences`` that ended the answer."""
    usage: MessagesUsage


class MessagesAnswer(Answer):
    """One answer of the assistant, as the blocks that it consists of.

    Args:
        service: the model that answers.
        response_id: the id of the answer.
        body: the request.
        dialogue: says how the model's text is read.
    """

    def __init__(
        self, service: Service, response_id: str, body: MessagesRequest, dialogue: Dialogue
    ) -> None:
        super().__init__(service, response_id, body.model)
        self._max_tokens = body.max_tokens
        self._messages = MessageReaders(dialogue, service.model.tokenizer.token_bytes)
        self._writer = BlockWriter()
        self._has_begun = False
        self._finished: CompletionOutput | None = None

    def count_reasoning(self, index: int, output: RequestOutput) -> int:
        """Return the number of reasoning tokens in the new output."""
        return self._messages.count_reasoning(index, output.outputs[0])

    def whole(self, outputs: Sequence[RequestOutput], usage: Usage) -> MessageObject:
        """Return the whole answer."""
        for _ in self._read(outputs[0]):
            pass
        message = {**self._message(usage), "content": self._writer.content, **self._stop(usage)}
        return MessageObject.model_validate(message)

    def events(self, index: int, output: RequestOutput, usage: UsageCounter) -> Iterable[bytes]:  # noqa: ARG002
        """Yield the events for new output of the engine."""
        if not self._has_begun:
            self._has_begun = True
            yield _send({"type": "message_start", "message": self._message(usage.usage)})
            yield _send({"type": "ping"})
        for each in self._read(output):
            yield _send(each)

    def last_events(self, usage: Usage) -> Iterable[bytes]:
        """Yield the events with the stop reason and the usage, and of the end."""
        delta = self._stop(usage)
        yield _send({"type": "message_delta", "delta": delta, "usage": _usage(usage)})
        yield _send({"type": "message_stop"})

    def error_events(self, error: ApiError) -> Iterable[bytes]:
        """Yield the error, which ends a stream."""
        body = AnthropicErrorBody.of(error.status_code, error.detail, error.code)
        yield event(body, "error")

    def _read(self, output: RequestOutput) -> Iterator[Event]:
        (completion,) = output.outputs
        yield from self._writer.write(self._messages.read(0, completion))
        if completion.finish_reason is not None:
            self._finished = completion
            yield from self._writer.finish()

    def _message(self, usage: Usage) -> dict[str, Any]:
        """Return the message without its content."""
        return {
            "id": self.response_id,
            "type": "message",
            "role": "assistant",
            "model": self.envelope["model"],
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(usage),
        }

    def _stop(self, usage: Usage) -> dict[str, Any]:
        """Return why the answer has ended."""
        reason: StopReason = "end_turn"
        sequence = None
        if self._finished and self._finished.finish_reason == "length":
            is_full = usage.completion_tokens < self._max_tokens
            reason = "model_context_window_exceeded" if is_full else "max_tokens"
        elif self._writer.has_calls:
            reason = "tool_use"
        elif self._finished and isinstance(self._finished.stop_reason, str):
            reason = "stop_sequence"
            sequence = self._finished.stop_reason
        return {"stop_reason": reason, "stop_sequence": sequence}


def _send(fields: Event) -> bytes:
    return event(fields, fields["type"])


def _usage(usage: Usage) -> dict[str, Any]:
    cached = usage.prompt_tokens_details.cached_tokens
    return {
        "input_tokens": usage.prompt_tokens - cached,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {
            "thinking_tokens": usage.completion_tokens_details.reasoning_tokens
        },
    }
