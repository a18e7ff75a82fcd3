"""A server under load: a crowd of streams, thousands of requests, clients that vanish.

python -m benchmarks.http_load

Crowd: hundreds of clients stream at once; each must get all its tokens, and none must wait much
longer than the others. Memory: thousands of requests, a few at a time, over which the server's RAM
must not grow. (Its KV pool is small, so that it is full of cached blocks, and all its pages are
touched, long before the end.) Vanishing: clients cut their connections in mid-stream; the gauges
must go back to 0, and the next request be served at once.

The server is a process of its own, the clients are in this one, and both share the cores.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from benchmarks.common import MB, RESULTS, print_table, report
from benchmarks.server import Server, serving
from minimal_vllm_lab.bench.client import connect, send_all
from minimal_vllm_lab.bench.config import Load, Workload
from minimal_vllm_lab.bench.statistics import Outcome
from minimal_vllm_lab.bench.workload import make_requests

SMALL_POOL = 512
"""Blocks: the requests of the memory test fill them within its first 1,000."""
CONCURRENCY = 32
"""Of the memory test."""
PATIENCE = 60.0
"""Seconds in which gauges must be 0 again."""
GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")


# ---- a crowd ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crowd:
    """What clients that stream at once got; seconds."""

    num_clients: int
    lost: int
    """Clients whose stream failed, or was not whole."""
    errors: list[str]
    duration: float
    tokens: int
    first_token: list[float]
    """Least, median, most time to a client's first token; empty if all were lost."""
    whole: list[float]
    """The same of its whole stream."""
    longest_gap: list[float]
    """The same of the longest wait between two of its tokens."""


async def measure_crowd(server: Server, num_clients: int, num_tokens: int) -> Crowd:
    """Let clients stream, all at once."""
    workload = Workload(num_prompts=num_clients, random_input_len=32, random_output_len=num_tokens)
    begun = time.perf_counter()
    outcomes = await _send(server, workload, None)
    completed = [each for each in outcomes if each.output_tokens == num_tokens and not each.error]
    return Crowd(
        num_clients=num_clients,
        lost=num_clients - len(completed),
        errors=sorted({each.error for each in outcomes if each.error}),
        duration=time.perf_counter() - begun,
        tokens=sum(each.output_tokens for each in outcomes),
        first_token=_spread([each.ttft for each in completed]),
        whole=_spread([each.latency for each in completed]),
        longest_gap=_spread([max(each.itl, default=0.0) for each in completed]),
    )


async def _send(
    server: Server, workload: Workload, max_concurrency: int | None, on_end: Any = lambda _: None
) -> list[Outcome]:
    async with connect(Load(base_url=server.url)) as client:
        requests = make_requests(workload, client.num_symbols)
        return await send_all(client, requests, [0.0] * len(requests), max_concurrency, on_end)


def _spread(values: Sequence[float]) -> list[float]:
    return [min(values), float(np.median(values)), max(values)] if values else []


# ---- memory -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """The server's RAM, in bytes, over many requests."""

    failed: int
    samples: list[tuple[int, int]]
    """Requests completed, and RAM then."""
    settled: int
    """After so many requests, growth counts."""

    @property
    def growth(self) -> float:
        """Bytes per request since it settled: the slope of a straight line through the samples."""
        later = [sample for sample in self.samples if sample[0] >= self.settled]
        done, rss = np.array(later, float).T
        return float(np.polyfit(done, rss, deg=1)[0])

    def at(self, num_requests: int) -> int:
        """RAM when so many were completed."""
        return next(rss for done, rss in self.samples if done >= num_requests)


async def measure_memory(server: Server, num_requests: int) -> Memory:
    """Complete requests, a few at a time, and look at the server's RAM a hundred times."""
    workload = Workload(
        num_prompts=num_requests,
        random_input_len=24,
        random_output_len=8,
        random_range_ratio=0.5,
    )
    samples = [(0, server.rss)]
    done, every = 0, num_requests // 100

    def on_end(_outcome: Outcome) -> None:
        nonlocal done
        done += 1
        if done % every == 0:
            samples.append((done, server.rss))

    outcomes = await _send(server, workload, CONCURRENCY, on_end)
    failed = sum(bool(each.error) for each in outcomes)
    return Memory(failed, samples, settled=num_requests // 10)


# ---- clients that vanish ------------------------------------------------------------------------


@dataclass(frozen=True)
class Vanishing:
    """What clients that cut their connections left behind."""

    num_clients: int
    aborted: int
    """Requests that the server says it aborted."""
    seconds_to_clean: float
    """Until the gauges were 0 again."""
    next_error: str
    """Why the next request failed; empty: it did not."""
    next_latency: float
    """Seconds that it took; it has 8 tokens."""
    quiet_latency: float
    """The same of such a request before."""


async def measure_vanishing(server: Server, num_clients: int) -> Vanishing:
    """Let clients stream, cut all connections once each has a token, and send one request more."""
    one = Workload(num_prompts=1, random_input_len=8, random_output_len=8)
    (quiet,) = await _send(server, one, None)
    await _stream_and_vanish(server, num_clients)
    begun = time.perf_counter()
    await _until_clean(server)
    cleaned = time.perf_counter()
    (after,) = await _send(server, one, None)
    return Vanishing(
        num_clients=num_clients,
        aborted=int(server.metrics()["vllm:request_success_total{abort}"]),
        seconds_to_clean=cleaned - begun,
        next_error=after.error,
        next_latency=after.latency,
        quiet_latency=quiet.latency,
    )


async def _stream_and_vanish(server: Server, num_clients: int) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        opening = [_open_stream(session, server.url) for _ in range(num_clients)]
        for response in await asyncio.gather(*opening):
            if response.connection is None or response.connection.transport is None:
                raise RuntimeError("a stream ended before it was cut")
            response.connection.transport.abort()
            response.close()


async def _open_stream(session: aiohttp.ClientSession, url: str) -> aiohttp.ClientResponse:
    """A long stream, of which the first token has come."""
    body = {"prompt": "It was", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    response = await session.post(f"{url}/v1/completions", json=body)
    response.raise_for_status()
    await response.content.readuntil(b"\n\n")
    return response


async def _until_clean(server: Server) -> None:
    deadline = time.perf_counter() + PATIENCE
    while True:
        metrics = server.metrics()
        if not any(metrics[gauge] for gauge in GAUGES):
            return
        if time.perf_counter() > deadline:
            raise RuntimeError(f"the gauges were not 0 within {PATIENCE:.0f} s")


# ---- the command --------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; its results, as they are written to the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=500, help="in the crowd")
    parser.add_argument("--tokens", type=int, default=32, help="that each of them gets")
    parser.add_argument("--requests", type=int, default=10_000, help="of the memory test")
    parser.add_argument("--vanishing", type=int, default=200, help="clients that vanish")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(arguments)

    with serving(f"--max-num-seqs={options.clients}") as server:
        crowd = asyncio.run(measure_crowd(server, options.clients, options.tokens))
    print_crowd(crowd)
    with serving(f"--num-gpu-blocks-override={SMALL_POOL}") as server:
        memory = asyncio.run(measure_memory(server, options.requests))
    print_memory(memory)
    with serving() as server:
        vanishing = asyncio.run(measure_vanishing(server, options.vanishing))
    print_vanishing(vanishing)
    results = {
        "crowd": asdict(crowd),
        "memory": {**asdict(memory), "growth": memory.growth},
        "vanishing": asdict(vanishing),
    }
    report("http_load", results, options.results)
    return results


def print_crowd(crowd: Crowd) -> None:
    """What was lost, and how unequal the clients' waits were."""
    rows = {
        "to the first token": crowd.first_token,
        "longest gap between two tokens": crowd.longest_gap,
        "to the last token": crowd.whole,
    }
    print_table(
        f"{crowd.num_clients} streams at once: {crowd.lost} lost, {crowd.tokens:,} tokens in "
        f"{crowd.duration:.1f} s {crowd.errors or ''}",
        ["seconds of a client", "least", "median", "most"],
        [
            [name, *([f"{each:.2f}" for each in values] or ["-"] * 3)]
            for name, values in rows.items()
        ],
    )


def print_memory(memory: Memory) -> None:
    """RAM at some points, and how it grew."""
    last = memory.samples[-1][0]
    points = dict.fromkeys([0, memory.settled, last // 2, last])
    print_table(
        f"RAM over {last:,} requests: {memory.failed} failed; {memory.growth:.0f} bytes more per "
        f"request, from {memory.settled:,} on",
        ["requests", "MB"],
        [[f"{point:,}", f"{memory.at(point) / MB:.1f}"] for point in points],
    )


def print_vanishing(vanishing: Vanishing) -> None:
    """What was left behind."""
    print_table(
        f"{vanishing.num_clients} clients vanish in mid-stream",
        ["", ""],
        [
            ["requests aborted", str(vanishing.aborted)],
            ["seconds until all gauges are 0", f"{vanishing.seconds_to_clean:.2f}"],
            [
                "seconds of the next request",
                vanishing.next_error or f"{vanishing.next_latency:.2f}",
            ],
            ["seconds of such a request before", f"{vanishing.quiet_latency:.2f}"],
        ],
    )


if __name__ == "__main__":
    main()
