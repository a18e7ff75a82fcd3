"""Server under load: hundreds of streams at once, thousands of requests, clients that disconnect.

python -m benchmarks.http_load

Crowd: hundreds of clients stream at once. Each must get all its tokens, and none may wait much
longer than the others.

Memory: thousands of requests, a few at a time. The server's RAM must not grow. Its KV pool is
small, so that it is full of cached blocks, and all its pages touched, long before the end.

Vanishing: clients cut their connections in mid-stream. The gauges must return to 0, and the next
request must be served at once.

The server and the clients are separate processes that share the cores.
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
"""Number of KV blocks; the memory test's first 1,000 requests fill them."""
CONCURRENCY = 32
"""Number of concurrent requests in the memory test."""
PATIENCE = 60.0
"""Time limit in seconds for the gauges to return to 0."""
GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
"""Metrics that must be 0 when no request is in progress."""


# ---- a crowd ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crowd:
    """Results of clients that stream at the same time. Times are in seconds."""

    num_clients: int
    lost: int
    """Number of clients whose stream failed or was incomplete."""
    errors: list[str]
    duration: float
    tokens: int
    first_token: list[float]
    """Minimum, median and maximum time to first token over clients; empty if all were lost."""
    whole: list[float]
    """Minimum, median and maximum duration of a stream."""
    longest_gap: list[float]
    """Minimum, median and maximum over clients of the longest gap between two tokens."""


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
    """RAM of the server in bytes, over many requests."""

    failed: int
    """Number of failed requests."""
    samples: list[tuple[int, int]]
    """Pairs of (number of completed requests, RAM)."""
    settled: int
    """Number of requests from which on growth is measured."""

    @property
    def growth(self) -> float:
        """Growth in bytes per request after the first ``settled`` requests.

        It is the slope of a line fitted to the samples.
        """
        later = [sample for sample in self.samples if sample[0] >= self.settled]
        done, rss = np.array(later, float).T
        return float(np.polyfit(done, rss, deg=1)[0])

    def at(self, num_requests: int) -> int:
        """Return the RAM when ``num_requests`` requests were completed."""
        return next(rss for done, rss in self.samples if done >= num_requests)


async def measure_memory(server: Server, num_requests: int) -> Memory:
    """Complete requests, a few at a time, and sample the server's RAM a hundred times."""
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
    """Results of clients that cut their connections."""

    num_clients: int
    aborted: int
    """Number of requests that the server reports as aborted."""
    seconds_to_clean: float
    """Time in seconds until the gauges were 0."""
    next_error: str
    """Error of the next request; empty if it succeeded."""
    next_latency: float
    """Latency of the next request, of 8 tokens, in seconds."""
    quiet_latency: float
    """Latency of the same request before the test, in seconds."""


async def measure_vanishing(server: Server, num_clients: int) -> Vanishing:
    """Let clients stream, cut each connection after its first token, and send another request."""
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
    """Return a long stream whose first token has arrived."""
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
    """Run the benchmark; return the results that are written to the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=500, help="number of clients in the crowd")
    parser.add_argument("--tokens", type=int, default=32, help="number of tokens for each of them")
    parser.add_argument(
        "--requests", type=int, default=10_000, help="number of requests in the memory test"
    )
    parser.add_argument(
        "--vanishing", type=int, default=200, help="number of clients that disconnect"
    )
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
    """Print how many streams were lost, and the differences between the clients."""
    rows = {
        "to the first token": crowd.first_token,
        "longest gap between two tokens": crowd.longest_gap,
        "to the last token": crowd.whole,
    }
    print_table(
        f"{crowd.num_clients} streams at once: {crowd.lost} lost, {crowd.tokens:,} tokens in "
        f"{crowd.duration:.1f} s {crowd.errors or ''}",
        ["seconds of a client", "min", "median", "max"],
        [
            [name, *([f"{each:.2f}" for each in values] or ["-"] * 3)]
            for name, values in rows.items()
        ],
    )


def print_memory(memory: Memory) -> None:
    """Print the RAM at some points, and its growth."""
    last = memory.samples[-1][0]
    points = dict.fromkeys([0, memory.settled, last // 2, last])
    print_table(
        f"RAM over {last:,} requests: {memory.failed} failed; it grows by {memory.growth:.0f} "
        f"bytes per request from request {memory.settled:,} on",
        ["requests", "MB"],
        [[f"{point:,}", f"{memory.at(point) / MB:.1f}"] for point in points],
    )


def print_vanishing(vanishing: Vanishing) -> None:
    """Print what the clients left behind."""
    print_table(
        f"{vanishing.num_clients} clients disconnect in mid-stream",
        ["", ""],
        [
            ["requests aborted", str(vanishing.aborted)],
            ["seconds until all gauges are 0", f"{vanishing.seconds_to_clean:.2f}"],
            [
                "latency of the next request, seconds",
                vanishing.next_error or f"{vanishing.next_latency:.2f}",
            ],
            ["latency of the same request before, seconds", f"{vanishing.quiet_latency:.2f}"],
        ],
    )


if __name__ == "__main__":
    main()
