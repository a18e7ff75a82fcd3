"""Streams of chunks, the format of OpenAI's older endpoints, and the bytes of an event."""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json

from minimal_vllm.outputs import RequestOutput
from minimal_vllm.server.errors import ApiError
from minimal_vllm.server.generation import Answer, UsageCounter
from minimal_vllm.server.models import SamplingFields, StreamOptions, Usage
from minimal_vllm.server.service import Service


class ChunkedAnswer(Answer):
    """An answer that is streamed as chunks, in the format of OpenAI's older endpoints.

    Attributes:
        chunk_object: value of the chunks' field ``object``.
    """

    chunk_object: str

    def __init__(self, service: Service, response_id: str, body: SamplingFields) -> None:
        super().__init__(service, response_id, body.model)
        self._options = body.stream_options or StreamOptions()
        if service.config.enable_force_include_usage:
            self._options = StreamOptions(include_usage=True, continuous_usage_stats=True)
        self._begun: set[int] = set()
        self._around_texts: dict[int, tuple[bytes, bytes]] = {}

    def opening(
        self,
        index: int,  # noqa: ARG002
        output: RequestOutput,  # noqa: ARG002
    ) -> list[dict[str, Any]]:
        """Return the chunks that precede the first text of one choice."""
        return []

    @abstractmethod
    def chunks(self, index: int, output: RequestOutput) -> list[dict[str, Any]]:
        """Return the chunks for the new output of one choice, without the envelope."""

    @abstractmethod
    def only_text(self, index: int, output: RequestOutput) -> str | None:
        """Return the new text if ``chunks`` would contain nothing else, else None."""

    @abstractmethod
    def text_chunk(self, index: int, text: str) -> dict[str, Any]:
        """Return the chunk that contains only a text."""

    def events(self, index: int, output: RequestOutput, usage: UsageCounter) -> Iterable[bytes]:
        """Return the events of one choice's new output, one per chunk.

        Most chunks contain only a text. Their events take a shorter way, since there is one for
        each token.
        """
        if index in self._begun and not self._options.continuous_usage_stats:
            text = self.only_text(index, output)
            if text is not None:
                return [self._text_event(index, text)] if text else []
        return self._all_events(index, output, usage)

    def _all_events(
        self, index: int, output: RequestOutput, usage: UsageCounter
    ) -> Iterable[bytes]:
        """Yield the events of any new output."""
        if index not in self._begun:
            before = self._usage(usage, len(output.outputs[0].token_ids))
            for fields in self.opening(index, output):
                yield self._event(fields | before)
            self._begun.add(index)
        for fields in self.chunks(index, output):
            yield self._event(fields | self._usage(usage))

    def _usage(self, usage: UsageCounter, num_new: int = 0) -> dict[str, Any]:
        """Return a chunk's field ``usage``: the usage so far, except for ``num_new`` tokens."""
        if not self._options.include_usage:
            return {}
        if not self._options.continuous_usage_stats:
            return {"usage": None}
        return {"usage": _without(usage.usage, num_new)}

    def last_events(self, usage: Usage) -> Iterable[bytes]:
        """Yield the usage, if it is asked for, and ``[DONE]``."""
        if self._options.include_usage:
            yield self._event({"choices": [], "usage": usage})
        yield DONE

    def error_events(self, error: ApiError) -> Iterable[bytes]:
        """Return an event with OpenAI's error body, and ``[DONE]``."""
        return event(error.body), DONE

    def _text_event(self, index: int, text: str) -> bytes:
        """Return the event of a ``text_chunk``. Only the text is encoded again for each one."""
        around = self._around_texts.get(index)
        if around is None:
            usage = {"usage": None} if self._options.include_usage else {}
            whole = self._event(self.text_chunk(index, PLACEHOLDER) | usage)
            before, _, after = whole.rpartition(to_json(PLACEHOLDER))
            around = self._around_texts[index] = before, after
        return around[0] + to_json(text) + around[1]

    def _event(self, fields: dict[str, Any]) -> bytes:
        # The fields that all chunks share are encoded once. The others are a dictionary, because
        # building and validating a model would take ten times as long.
        return self._head + to_json(fields)[1:] + b"\n\n"

    @cached_property
    def _head(self) -> bytes:
        """The beginning of every chunk's event, up to the fields that differ."""
        return event({**self.envelope, "object": self.chunk_object})[: -len(b"}\n\n")] + b","


def _without(usage: Usage, num_new: int) -> Usage:
    """Return the usage without some tokens, for a chunk that comes before their text."""
    return replace(
        usage,
        completion_tokens=usage.completion_tokens - num_new,
        total_tokens=usage.total_tokens - num_new,
    )


def event(content: BaseModel | dict[str, Any], name: str | None = None) -> bytes:
    """Return a server-sent event, of type ``name`` if that is given, with this JSON as data."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + to_json(content) + b"\n\n"


DONE = b"data: [DONE]\n\n"
"""The last event of OpenAI's older streams."""
PLACEHOLDER = "\0"
"""Text that stands for the chunk's text in an encoded event. No other field contains it."""
