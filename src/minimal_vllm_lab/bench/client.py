"""Client of the OpenAI API that times each request and each of its tokens."""

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from minimal_vllm_lab.bench.config import Load
from minimal_vllm_lab.bench.events import EventParser
from minimal_vllm_lab.bench.statistics import Outcome
from minimal_vllm_lab.bench.workload import SampleRequest
from minimal_vllm_lab.stats.guesses import GuessCounts

WORDS = (  # noqa: SIM905 - as a list it would take a page
    "the of and to a in that he was it his had with as for I at her on not but be she you is him "
    "all by from which my have said this me were they so one there what or been out when no up "
    "them would if into who could are will then your about like down time very over good man now "
    "little before never after some two other old great see first way long house hand day came "
    "made go come than back again here such must upon any much how away where own through world"
).split()
"""Common words, each of which most tokenizers encode as one token."""

CONNECT_TIMEOUT = 30.0
"""Time limit for connecting, in seconds. There is no limit after that."""


class RequestError(Exception):
    """Error of one request; the message says why it failed."""


class Client:
    """Client that sends requests to one endpoint of one server.

    Attributes:
        model: model name that requests give.
        token_ids: token ids that prompts are made of; a symbol of a prompt is an index into
            this list. None if only text can be sent; a symbol is then an index of ``WORDS``.
    """

    def __init__(self, session: aiohttp.ClientSession, load: Load) -> None:
        self._session = session
        self._load = load
        self.model = load.model or ""
        self.token_ids: list[int] | None = None

    async def prepare(self) -> None:
        """Ask the server for the model's name and for token ids to build prompts from.

        Raises:
            ValueError: no server answers, or it lists no models.
        """
        if not self.model:
            self.model = await self._first_model()
        if not self._load.is_chat:
            self.token_ids = await self._tokens_of_words()

    @property
    def num_symbols(self) -> int:
        """Number of different symbols (token ids or words) that prompts may contain."""
        return len(self.token_ids or WORDS)

    async def send(self, request: SampleRequest) -> Outcome:
        """Send a request and read its stream to the end. A failure is part of the outcome."""
        outcome = Outcome(len(request.prompt), time.perf_counter())
        try:
            await self._stream(self._body(request), outcome)
        except RequestError as error:
            outcome.error = str(error)
        except Exception as error:  # a malformed stream must not stop the other requests
            outcome.error = f"{type(error).__name__}: {error}"
        return outcome

    def _body(self, request: SampleRequest) -> dict[str, Any]:
        body = {
            "model": self.model,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"ignore_eos": True} if self._load.ignore_eos else {}),
            **(self._load.extra_body or {}),
        }
        if self.token_ids is not None:
            prompt = [self.token_ids[symbol] for symbol in request.prompt]
            return {**body, "prompt": prompt, "max_tokens": request.output_len}
        text = " ".join(WORDS[symbol] for symbol in request.prompt)
        if not self._load.is_chat:
            return {**body, "prompt": text, "max_tokens": request.output_len}
        messages = [{"role": "user", "content": text}]
        return {**body, "messages": messages, "max_completion_tokens": request.output_len}

    async def _stream(self, body: dict[str, Any], outcome: Outcome) -> None:
        url = f"{self._load.url}{self._load.endpoint}"
        async with self._session.post(url, json=body) as response:
            if response.status != 200:
                raise RequestError(f"HTTP {response.status}: {_reason(await response.text())}")
            parser = EventParser()
            async for received in response.content.iter_any():
                now = time.perf_counter()
                for event in parser.feed(received):
                    if event == "[DONE]":
                        return _check_complete(outcome)
                    _note_event(json.loads(event), outcome, now)
        raise RequestError("the stream ended without [DONE]")

    # ---- facts about the server ------------------------------------------------------------------

    async def _first_model(self) -> str:
        url = f"{self._load.url}/v1/models"
        try:
            async with self._session.get(url) as response:
                text = await response.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ValueError(
                f"no server answers at {self._load.url} ({error}): start one, or set another "
                f"address with --base-url, or --host and --port"
            ) from error
        try:
            return str(json.loads(text)["data"][0]["id"])
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"{url} lists no models (HTTP {response.status}: {_reason(text)}): name one with "
                f"--model"
            ) from error

    async def count_guesses(self) -> GuessCounts | None:
        """Return what the server has guessed so far; None if its metrics don't tell."""
        try:
            async with self._session.get(f"{self._load.url}/metrics") as response:
                return read_guesses(await response.text()) if response.ok else None
        except (aiohttp.ClientError, TimeoutError, ValueError):  # what it answers is no metrics
            return None

    async def _tokens_of_words(self) -> list[int] | None:
        """Return the token ids of common words; None if the server can't tokenize like vLLM's."""
        text = "".join(f" {word}" for word in WORDS)
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        try:
            async with self._session.post(f"{self._load.url}/tokenize", json=body) as response:
                tokens = json.loads(await response.text())["tokens"]
        except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError):
            return None
        return list(dict.fromkeys(tokens)) or None


def read_guesses(metrics: str) -> GuessCounts:
    """Return what the counters of speculative decoding add up to, over all engines of a server.

    Args:
        metrics: A server's metrics, in Prometheus' text format.

    Raises:
        ValueError: they are not in this format.
    """
    counts = GuessCounts()
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            match sample.name:
                case "vllm:spec_decode_num_drafts_total":
                    counts.num_drafts += int(sample.value)
                case "vllm:spec_decode_num_draft_tokens_total":
                    counts.num_draft_tokens += int(sample.value)
                case "vllm:spec_decode_num_accepted_tokens_per_pos_total":
                    counts.accepted[int(sample.labels["position"])] += int(sample.value)
    return counts


def _note_event(event: dict[str, Any], outcome: Outcome, now: float) -> None:
    if event.get("error"):
        raise RequestError(_reason(json.dumps(event)))
    for choice in event.get("choices") or ():
        delta = choice.get("delta")
        text = choice.get("text") if delta is None else delta.get("content")
        outcome.generated_text += text or ""
        if delta is None or _has_content(delta) or _ends_without_text(choice, outcome):
            outcome.note_token(now)
    if usage := event.get("usage"):
        outcome.output_tokens = usage["completion_tokens"]
        outcome.prompt_len = usage["prompt_tokens"]


def _has_content(delta: dict[str, Any]) -> bool:
    """Return whether a chat delta contains more than the role.

    The first event of a chat only has the role, and the last may be empty. Neither is a token.
    """
    return any(value for name, value in delta.items() if name != "role")


def _ends_without_text(choice: dict[str, Any], outcome: Outcome) -> bool:
    """Return whether this is the last event of an output whose tokens all had no text."""
    return choice.get("finish_reason") is not None and not outcome.latency


def _check_complete(outcome: Outcome) -> None:
    if not outcome.latency:
        raise RequestError("the stream contained no token")
    if not outcome.output_tokens:
        raise RequestError("the stream contained no usage, which is needed to count tokens")


def _reason(text: str) -> str:
    """Return the message of an error in OpenAI's format, or the beginning of any other text."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return " ".join(text.split())[:200]


@asynccontextmanager
async def connect(load: Load) -> AsyncGenerator[Client, None]:
    """Yield a client that is ready to send requests.

    The API key is taken from the environment variable OPENAI_API_KEY, if set.

    Raises:
        ValueError: See ``Client.prepare``.
    """
    key = os.environ.get("OPENAI_API_KEY")
    async with aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {key}"} if key else None,
        connector=aiohttp.TCPConnector(limit=0),  # no limit: the load decides on concurrency
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
    ) as session:
        client = Client(session, load)
        await client.prepare()
        yield client


async def send_all(
    client: Client,
    requests: list[SampleRequest],
    times: Iterable[float],
    max_concurrency: int | None = None,
    on_end: Callable[[Outcome], object] = lambda _: None,
) -> list[Outcome]:
    """Send each request at its time and wait for all of them; return their outcomes.

    Args:
        client: sends the requests.
        requests: requests to send.
        times: time to send each request at, in seconds from now; see ``arrival_times``.
        max_concurrency: maximum number of requests in progress. Others wait, first come first
            served. Default: no limit.
        on_end: called with each outcome.
    """
    begun = time.perf_counter()
    free = asyncio.Semaphore(max_concurrency or len(requests))

    async def send(request: SampleRequest, at: float) -> Outcome:
        await asyncio.sleep(at - (time.perf_counter() - begun))
        async with free:
            outcome = await client.send(request)
        on_end(outcome)
        return outcome

    return await asyncio.gather(*map(send, requests, times))
