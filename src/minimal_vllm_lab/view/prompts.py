"""Prompts that viewers type into the page."""

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from minimal_vllm.demo import DEMO_MODEL_DIR
from minimal_vllm.outputs import OutputKind
from minimal_vllm.server.engine_client import EngineRequest

if TYPE_CHECKING:
    from minimal_vllm.llm import LLM
    from minimal_vllm.server.async_engine import AsyncEngine


class ViewerPrompt(BaseModel):
    """Body of ``POST /view/prompt``."""

    model_config = ConfigDict(extra="forbid")

    request_id: Annotated[str, Field(min_length=1, max_length=100)]
    prompt: str
    max_tokens: Annotated[int, Field(ge=1)]


class ViewerPrompts:
    """Send viewers' prompts to an engine. Belongs to the event loop.

    The page does not wait for the text, which it gets from the records. A browser opens at most six
    connections to a server: six prompts that wait for a paused engine would leave none for the
    button that lets it go on.

    Args:
        engine: the engine to send requests to.
        llm: the engine's model and tokenizer.

    Attributes:
        are_chats: whether a prompt is a message of a conversation, as for models that have a chat
            template. The built-in model tells stories, so for it a prompt is a beginning.
    """

    def __init__(self, engine: "AsyncEngine", llm: "LLM") -> None:
        self.are_chats = llm.text.chat_template is not None and llm.config.model != str(
            DEMO_MODEL_DIR
        )
        self._engine = engine
        self._llm = llm
        self._defaults = llm.get_default_sampling_params()
        self._tasks: set[asyncio.Task[None]] = set()
        self._arrivals: dict[str, asyncio.Event] = {}

    async def send(self, prompt: ViewerPrompt) -> None:
        """Send a prompt, and return when the engine has it.

        Raises:
            RequestRefusedError: the engine can't serve it.
            EngineFailedError: the engine could not take it.
            EngineStoppedError: the server shuts down.
        """
        request = EngineRequest(
            request_id=prompt.request_id,
            prompt_token_ids=self._tokenize(prompt.prompt),
            params=replace(self._defaults, max_tokens=prompt.max_tokens),
            output_kind=OutputKind.FINAL_ONLY,
        )
        arrival = self._arrivals[prompt.request_id] = asyncio.Event()
        completion = asyncio.create_task(self._complete(request))
        self._tasks.add(completion)
        completion.add_done_callback(self._tasks.discard)
        arrived = asyncio.create_task(arrival.wait())
        try:
            await asyncio.wait({completion, arrived}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            arrived.cancel()
            del self._arrivals[prompt.request_id]
        if completion.done():
            completion.result()

    def note_arrival(self, request_id: str) -> None:
        """Note that the engine has taken a request."""
        if request_id in self._arrivals:
            self._arrivals[request_id].set()

    def stop(self) -> None:
        """Abort all of these requests."""
        for task in self._tasks:
            task.cancel()

    def _tokenize(self, prompt: str) -> list[int]:
        if not self.are_chats:
            return self._llm.tokenizer.encode(prompt)
        text = self._llm.render_chat([{"role": "user", "content": prompt}])
        return self._llm.tokenizer.encode(text, add_special_tokens=False)

    async def _complete(self, request: EngineRequest) -> None:
        async for _ in self._engine.generate([request]):
            pass
