"""The served model: its names, its tokenizer and its engine, shared by all routes."""

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from minimal_vllm.demo import DEMO_MODEL_NAME
from minimal_vllm.outputs import OutputKind
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.server.config import ServerConfig
from minimal_vllm.server.engine_client import EngineClient, EngineRequest
from minimal_vllm.server.errors import ApiError, as_api_error
from minimal_vllm.server.formats import Formats, choose_formats
from minimal_vllm.server.logprobs import TokenNames
from minimal_vllm.server.models import Prompt, SamplingFields
from minimal_vllm.server.served_model import ServedModel
from minimal_vllm.server.structured import Constraint
from minimal_vllm.settings import SettingsError

if TYPE_CHECKING:
    from minimal_vllm.server.extension import ServerExtension

logger = logging.getLogger(__name__)

NUM_GRAMMAR_THREADS = 2


def choose_model_names(config: ServerConfig, model: str | None) -> list[str]:
    """Return the names by which clients may call the model; metrics use the first.

    Args:
        config: the server's options.
        model: name or folder of the model; None: the built-in one.
    """
    return config.served_model_name or [model or DEMO_MODEL_NAME]


class ServerMetrics(Protocol):
    """Metrics of the whole server, wherever they are kept."""

    def answered(self, handler: str, method: str, status: int, seconds: float) -> None:
        """Note that an HTTP request was answered by the route ``handler``, or ``none``."""

    async def render(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        ...


@dataclass(frozen=True)
class Service:
    """A model that is served."""

    model: ServedModel
    engine: EngineClient
    metrics: ServerMetrics
    config: ServerConfig
    model_names: list[str]
    view: "ServerExtension | None" = None
    created: int = field(default_factory=lambda: int(time.time()))
    grammar_threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(NUM_GRAMMAR_THREADS, "grammar")
    )

    @cached_property
    def formats(self) -> Formats:
        """Formats in which the model writes tool calls and reasoning."""
        template = self.model.chat_template
        return choose_formats(self.config, template.source if template else "")

    @property
    def max_model_len(self) -> int:
        """Maximum number of tokens of prompt and completion together."""
        return self.model.facts.max_model_len

    def check_model(self, name: str | None) -> None:
        """Refuse requests for another model (404)."""
        if name is not None and name not in self.model_names:
            raise ApiError(
                404,
                f"there is no model {name!r}: this server has {', '.join(self.model_names)}",
                param="model",
                code="model_not_found",
            )

    def check_length(self, prompts: Iterable[Sequence[int]], field: str) -> None:
        """Refuse prompts after which no token fits into the context (400), as OpenAI does.

        Client libraries look for this error code and this wording. LangChain needs "prompt is too
        long".

        Args:
            prompts: token ids of each prompt.
            field: field of the request that the prompts come from.
        """
        longest = max(map(len, prompts))
        if longest >= self.max_model_len:
            raise ApiError(
                400,
                f"This model's maximum context length is {self.max_model_len} tokens. However, the "
                f"prompt is too long: it has {longest} tokens, and at least one must fit behind "
                f"it. Shorten the {field}.",
                param=field,
                code="context_length_exceeded",
            )

    def check_load(self) -> None:
        """Refuse requests while too many wait (429)."""
        if self.engine.num_waiting >= self.config.max_waiting_requests:
            raise ApiError(
                429,
                f"{self.engine.num_waiting} requests are waiting already: try again later",
                code="too_many_waiting_requests",
                headers={"Retry-After": "1"},
            )

    def sampling_params(self, body: SamplingFields, max_tokens: int | None) -> SamplingParams:
        """Return the request's parameters; absent ones are the model's or the endpoint's.

        Raises:
            ApiError: a parameter is out of range.
        """
        model_choice = self.model.facts.sampling
        try:
            return body.sampling_params({"max_tokens": max_tokens, **model_choice})
        except SettingsError as error:
            raise as_api_error(error).renamed(body.client_field) from error

    async def constrain(
        self, params: SamplingParams, constraint: Constraint | None
    ) -> SamplingParams:
        """Compile the constraint's grammar, and return the parameters with the constraint.

        A compilation may take seconds, so neither the event loop nor the engine's thread does it.
        It runs in one of a few threads, so that many bad grammars leave other threads free to
        tokenize prompts.

        Raises:
            ApiError: the constraint can't be used; the message names the field.
        """
        if constraint is None:
            return params
        self.check_load()
        compile_it = self.model.grammars.start
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self.grammar_threads, compile_it, constraint.params)
        except ValueError as error:
            reason = error.__cause__ or error  # which would name the engine's parameter
            name, sentence = constraint.blame(str(reason))
            raise ApiError(400, sentence, param=name) from error
        return replace(params, structured_outputs=constraint.params)

    # ---- tokenizing, in other threads since long texts take long ---------------------------------

    async def encode(self, prompts: list[Prompt], *, add_special_tokens: bool) -> list[list[int]]:
        """Return the token ids of each prompt; refuse one that isn't valid text (400)."""
        tokenizer = self.model.tokenizer
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        encoded: Sequence[list[int]] = ()
        if texts:
            try:
                encoded = await asyncio.to_thread(
                    tokenizer.encode_batch, texts, add_special_tokens=add_special_tokens
                )
            except ValueError as error:
                raise ApiError(400, str(error)) from error
        in_order = iter(encoded)
        return [next(in_order) if isinstance(prompt, str) else prompt for prompt in prompts]

    def truncate(
        self, prompts: list[list[int]], body: SamplingFields, max_tokens: int | None
    ) -> list[list[int]]:
        """Return the prompts, shortened as ``truncate_prompt_tokens`` says.

        Args:
            prompts: token ids of each prompt.
            body: the request.
            max_tokens: maximum number of output tokens; None: as many as fit.

        Raises:
            ApiError: more tokens are to be kept than leave room for ``max_tokens``.
        """
        wanted = body.truncate_prompt_tokens
        if wanted is None:
            return prompts
        most = self.max_model_len - (max_tokens or 1)
        if max(wanted, 1) > most:
            raise ApiError(
                400,
                f"truncate_prompt_tokens: {max(wanted, 1)} prompt tokens and {max_tokens or 1} "
                f"output tokens are more than the context of {self.max_model_len} tokens",
                param="truncate_prompt_tokens",
            )
        length = most if wanted < 0 else wanted
        if body.truncation_side == "right":
            return [prompt[:length] for prompt in prompts]
        return [prompt[max(len(prompt) - length, 0) :] for prompt in prompts]

    def token_names(self, body: SamplingFields) -> TokenNames:
        """Return the names of tokens in a response: texts, or ids if they are asked for."""
        as_ids = body.return_tokens_as_token_ids or self.config.return_tokens_as_token_ids
        return TokenNames(self.model.tokenizer, as_ids)

    # ---- requests --------------------------------------------------------------------------------

    def make_requests(
        self,
        response_id: str,
        body: SamplingFields,
        prompts: list[list[int]],
        params: SamplingParams,
    ) -> list[EngineRequest]:
        """Return one engine request per choice: ``n`` for the first prompt, then for the next.

        Requests with the same prompt are admitted together. The first computes the prompt, and the
        others share its blocks, as with the engine's own ``n``.
        """
        if body.priority and not self.model.facts.has_priorities:
            raise ApiError(
                400,
                "priority: this server schedules requests in their order of arrival "
                "(--scheduling-policy=priority)",
                param="priority",
            )
        if self.config.enable_log_requests:
            for prompt in prompts:
                logger.info(
                    "request_id=%s prompt_tokens=%d params=%s", response_id, len(prompt), params
                )
        return [
            EngineRequest(
                request_id=f"{response_id}-{place * params.n + index}",
                prompt_token_ids=prompt,
                params=replace(params, n=1, seed=_seed_of_choice(params.seed, index)),
                output_kind=OutputKind.DELTA if body.stream else OutputKind.FINAL_ONLY,
                priority=body.priority,
                cache_salt=body.cache_salt,
                num_choices=params.n if index == 0 else 0,
            )
            for place, prompt in enumerate(prompts)
            for index in range(params.n)
        ]

    def check_size(self, num_prompts: int, n: int) -> None:
        """Refuse a request for more completions than are allowed (400)."""
        if num_prompts * n > self.config.max_choices:
            raise ApiError(
                400,
                f"n: {num_prompts} prompts with n={n} make more completions than the "
                f"{self.config.max_choices} that one request may ask for (--max-choices)",
                param="n",
            )


def _seed_of_choice(seed: int | None, index: int) -> int | None:
    """Return the seed of one choice, as the engine computes it for ``n``."""
    return None if seed in (None, -1) else (seed + index) % 2**64  # never -1, which is no seed
