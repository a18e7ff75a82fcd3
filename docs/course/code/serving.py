"""Clients of one engine, served one after another in the event loop, and by the server's engine.

The event loop talks to the network. A heartbeat shows how long it could not.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.outputs import OutputKind
from minimal_vllm.server.async_engine import AsyncEngine
from minimal_vllm.server.engine_client import EngineRequest
from minimal_vllm.server.metrics import Metrics

PROMPT = "The old captain looked at the sea, and"
NUM_CLIENTS, NUM_TOKENS = 8, 16
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)


@dataclass
class Client:
    """Arrival time of a client, and the times of its tokens, in seconds."""

    came: float = field(default_factory=time.monotonic)
    tokens: list[float] = field(default_factory=list)


Serve = Callable[[LLM, Client, str], Awaitable[None]]


async def main() -> None:
    print(f"{NUM_CLIENTS} clients, {NUM_TOKENS} tokens each   last first token   all done   deaf")
    metrics = Metrics("course")
    llm = LLM(num_gpu_blocks_override=128, observers=[metrics.on_step])
    llm.engine.add_request("warm-up", [1, 2, 3], GREEDY)
    metrics.arrived("warm-up", 3)
    while llm.engine.has_unfinished_requests:
        llm.engine.step()

    turn = asyncio.Lock()

    async def in_turn(llm: LLM, client: Client, name: str) -> None:
        async with turn:
            metrics.arrived(name, 9)
            llm.engine.add_request(name, prompt_of(llm), GREEDY, output_kind=OutputKind.DELTA)
            while llm.engine.has_unfinished_requests:
                llm.engine.step()
                client.tokens.append(time.monotonic())
                await asyncio.sleep(0)

    await show("one after the other", in_turn, llm)

    engine = AsyncEngine(llm.engine, metrics)
    await engine.start()

    async def by_the_server(llm: LLM, client: Client, name: str) -> None:
        request = EngineRequest(name, prompt_of(llm), GREEDY, OutputKind.DELTA)
        async with aclosing(engine.generate([request])) as outputs:
            async for _ in outputs:
                client.tokens.append(time.monotonic())

    await show("the engine's thread", by_the_server, llm)
    await leave_early(engine, llm)
    await engine.stop()
    show_metrics(metrics)


async def show(name: str, serve: Serve, llm: LLM) -> None:
    heartbeat = asyncio.create_task(longest_silence())
    clients = [Client() for _ in range(NUM_CLIENTS)]
    begun = time.monotonic()
    await asyncio.gather(*(serve(llm, each, f"{name} {i}") for i, each in enumerate(clients)))
    seconds = time.monotonic() - begun
    heartbeat.cancel()
    last = max(each.tokens[0] - each.came for each in clients)
    print(
        f"{name:27}{1e3 * last:14.0f} ms   {1e3 * seconds:5.0f} ms   {1e3 * await heartbeat:.0f} ms"
    )


async def longest_silence() -> float:
    """Beats until it is cancelled; the longest time between two beats."""
    longest, last = 0.0, time.monotonic()
    with suppress(asyncio.CancelledError):
        while True:
            await asyncio.sleep(0.001)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
    return longest


async def leave_early(engine: AsyncEngine, llm: LLM) -> None:
    request = EngineRequest("leaves", prompt_of(llm), GREEDY, OutputKind.DELTA)
    async with aclosing(engine.generate([request])) as outputs:
        async for _ in outputs:
            break  # the browser was closed
    while llm.engine.has_unfinished_requests:
        await asyncio.sleep(0.01)
    pool = llm.engine.scheduler.pool
    print(f"\nAfter one has gone away, {pool.num_blocks - pool.num_free} blocks are in use.\n")


def show_metrics(metrics: Metrics) -> None:
    for line in metrics.text().decode().splitlines():
        if line.startswith("vllm:request_success_total"):
            print(line.replace('engine="0",', "").replace('model_name="course"', "…"))


def prompt_of(llm: LLM) -> list[int]:
    return llm.tokenizer.encode(PROMPT)


if __name__ == "__main__":
    asyncio.run(main())
