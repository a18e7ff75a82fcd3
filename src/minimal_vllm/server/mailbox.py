"""Outputs on their way from the engine to whoever reads them.

Nothing waits for a reader. What it has not read when more comes is merged into one output: who is
slow, be it a client or an event loop that writes fewer chunks a second than a GPU makes tokens, is
behind by one chunk per request, never by a queue of them; and it catches up with fewer chunks.
"""

import asyncio
from dataclasses import replace

from minimal_vllm.outputs import RequestOutput


class Mailbox:
    """The outputs that one reader waits for; each is of one completion, and holds what is new."""

    def __init__(self) -> None:
        self._outputs: dict[str, RequestOutput] = {}
        self._error: Exception | None = None
        self._has_mail = asyncio.Event()

    def put(self, output: RequestOutput) -> None:
        """Leave an output."""
        unread = self._outputs.get(output.request_id)
        self._outputs[output.request_id] = merge(unread, output) if unread else output
        self._has_mail.set()

    def fail(self, error: Exception) -> None:
        """Let the reader have this once it has read all outputs."""
        self._error = self._error or error
        self._has_mail.set()

    async def get(self) -> RequestOutput:
        """What has come of one request, as soon as there is something; raises what it failed of."""
        await self._has_mail.wait()
        if not self._outputs and self._error:
            raise self._error
        output = self._outputs.pop(next(iter(self._outputs)))
        if not self._outputs and not self._error:
            self._has_mail.clear()
        return output


def merge(earlier: RequestOutput, later: RequestOutput) -> RequestOutput:
    """Two outputs of a request as one."""
    (first,), (second,) = earlier.outputs, later.outputs
    both = replace(
        second,
        text=first.text + second.text,
        token_ids=first.token_ids + second.token_ids,
        logprobs=None if second.logprobs is None else (first.logprobs or []) + second.logprobs,
    )
    prompt_logprobs = earlier.prompt_logprobs or later.prompt_logprobs
    return replace(later, outputs=[both], prompt_logprobs=prompt_logprobs)
