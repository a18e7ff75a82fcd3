"""Outputs on their way from the engine to a reader.

The engine never waits for a reader. If more outputs arrive before the previous ones have been read,
they are merged into one. A slow client is therefore behind by one chunk per request, not by a queue
of chunks. The same is true of an event loop that writes fewer chunks per second than a GPU
generates tokens.
"""

import asyncio
from dataclasses import replace

from minimal_vllm.outputs import FlatLogprobs, RequestOutput


class Mailbox:
    """Unread outputs for one reader; each holds the new part of one completion."""

    def __init__(self) -> None:
        self._outputs: dict[str, RequestOutput] = {}
        self._error: Exception | None = None
        self._waiting: asyncio.Future[None] | None = None

    def put(self, output: RequestOutput) -> None:
        """Add an output, or merge it with the unread one of the same request."""
        unread = self._outputs.get(output.request_id)
        self._outputs[output.request_id] = merge(unread, output) if unread else output
        self._wake()

    def fail(self, error: Exception) -> None:
        """Raise this error in the reader once it has read all outputs."""
        self._error = self._error or error
        self._wake()

    async def get(self) -> RequestOutput:
        """Wait for an output and return it.

        Raises the error that was passed to ``fail``, if there are no more outputs.
        """
        if not self._outputs and not self._error:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        if not self._outputs and self._error:
            raise self._error
        return self._outputs.pop(next(iter(self._outputs)))

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


def merge(earlier: RequestOutput, later: RequestOutput) -> RequestOutput:
    """Return two consecutive outputs of one request as one output."""
    (first,), (second,) = earlier.outputs, later.outputs
    both = replace(
        second,
        text=first.text + second.text,
        token_ids=first.token_ids + second.token_ids,
        logprobs=FlatLogprobs.joined([first.logprobs, second.logprobs]),
    )
    prompt_logprobs = earlier.prompt_logprobs or later.prompt_logprobs
    return replace(later, outputs=[both], prompt_logprobs=prompt_logprobs)
