"""Accuracy of the simulator for replicas on Ray Serve: cache hits and time to first token.

python -m benchmarks.cluster_accuracy [--requests 80] [--rate 1.5]

Needs the extra ``ray``. Two replicas of the built-in model, with one thread each, serve requests
that begin with one of eight prefixes. The simulator gets the same requests at the same times, and
costs of steps that were fitted to other requests of the kind, which one engine ran by itself. It
knows nothing of Ray, of HTTP, and of replicas that share a machine's memory with their client.
"""

import argparse
import asyncio
import socket
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import server
from benchmarks.common import RESULTS, print_table, report
from benchmarks.sim_accuracy import Requests, run_engine
from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import LRU
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.routing import ROUTERS
from minimal_vllm_lab.sim.cluster import Cluster
from minimal_vllm_lab.sim.cost_model import LinearCostModel
from minimal_vllm_lab.sim.fit import fit_cost_model
from minimal_vllm_lab.sim.job import Job, SimulatedRequest
from minimal_vllm_lab.sim.metrics import Metrics
from minimal_vllm_lab.sim.replica import Replica
from minimal_vllm_lab.stats.arrivals import arrival_times

NUM_REPLICAS = 2
NUM_BLOCKS = 300
"""Number of KV blocks per replica: room for six of the eight prefixes, beside what runs."""
PREFIX_TOKENS = 512
Outcome = dict[str, Any]


def make_requests(count: int, seed: int) -> Requests:
    """Return prompts over eight prefixes, as token ids, with numbers of output tokens."""
    random = Random(seed)

    def tokens(number: int) -> list[int]:
        return [random.randrange(10, 4000) for _ in range(number)]

    prefixes = [tokens(PREFIX_TOKENS) for _ in range(8)]
    return [
        (random.choice(prefixes) + tokens(random.randint(8, 60)), random.randint(8, 32))
        for _ in range(count)
    ]


@contextmanager
def serving(routing: str) -> Iterator[str]:
    """Start a Ray cluster on this machine with two replicas; yield the server's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--ray", f"--port={port}", f"--replicas={NUM_REPLICAS}", f"--routing={routing}"]
    options += ["--cpus-per-replica=0.5", f"--num-gpu-blocks-override={NUM_BLOCKS}"]
    with server.serving(*options, threads=1) as started:
        try:
            yield started.url
        finally:
            started.stop()


async def measure(url: str, requests: Requests, arrivals: Sequence[float]) -> list[float]:
    """Send each request at its time; return the times to first token in seconds."""
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=httpx.Limits()) as client:
        for number in range(NUM_REPLICAS):  # warm up, with prompts of one block
            await _time_to_first_token(client, [number + 1] * 17, 4)
        begun = time.perf_counter()

        async def one(arrival: float, prompt: list[int], count: int) -> float:
            await asyncio.sleep(max(0.0, begun + arrival - time.perf_counter()))
            return await _time_to_first_token(client, prompt, count)

        pairs = zip(arrivals, requests, strict=True)
        return await asyncio.gather(*(one(arrival, *request) for arrival, request in pairs))


async def _time_to_first_token(client: httpx.AsyncClient, prompt: list[int], count: int) -> float:
    body = {"prompt": prompt, "max_tokens": count, "ignore_eos": True, "seed": 0, "stream": True}
    begun = time.perf_counter()
    first = None
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if first is None and line.startswith("data: {"):
                first = time.perf_counter() - begun
    if first is None:
        raise RuntimeError("a stream ended without a token")
    return first


def hit_rate(url: str) -> float:
    """Return the fraction of prompt tokens that were found in a prefix cache of any replica."""
    page = httpx.get(f"{url}/metrics", timeout=60).text
    samples = [each for family in text_string_to_metric_families(page) for each in family.samples]

    def total(name: str) -> float:
        return sum(each.value for each in samples if each.name == f"vllm:{name}_total")

    return total("prefix_cache_hits") / total("prefix_cache_queries")


class FirstTokens(Metrics):
    """Metrics that also keep each request's time to first token, in seconds."""

    def __init__(self) -> None:
        super().__init__(None)
        self.seconds: list[float] = []

    def add_ended(self, request: SimulatedRequest, now: float) -> None:
        """Record a request that got its last token; see ``Metrics.add_ended``."""
        super().add_ended(request, now)
        if request.first_token_at is not None:
            self.seconds.append(request.first_token_at - request.arrived)


def predict(
    requests: Requests,
    arrivals: Sequence[float],
    routing: str,
    config: SchedulerConfig,
    costs: LinearCostModel,
) -> tuple[list[float], float]:
    """Simulate the same; return the times to first token in seconds, and the hit rate."""
    replicas = [Replica(config, BlockPool(NUM_BLOCKS, LRU()), costs) for _ in range(NUM_REPLICAS)]
    router = ROUTERS[routing](range(NUM_REPLICAS), config.block_size)
    metrics = FirstTokens()
    jobs = (
        Job(arrival, array("i", prompt), count)
        for arrival, (prompt, count) in zip(arrivals, requests, strict=True)
    )
    Cluster(replicas, router, metrics).run(jobs)
    return metrics.seconds, metrics.report(replicas).prefix_cache_hit_rate


def compare(
    requests: Requests,
    arrivals: Sequence[float],
    routing: str,
    config: SchedulerConfig,
    costs: LinearCostModel,
) -> Outcome:
    """Measure and predict one router; see ``predict``."""
    with serving(routing) as url:
        measured = asyncio.run(measure(url, requests, arrivals))
        measured_hits = hit_rate(url)
    predicted, predicted_hits = predict(requests, arrivals, routing, config, costs)
    return {
        "routing": routing,
        "measured hits": measured_hits,
        "simulated hits": predicted_hits,
        "measured median TTFT, ms": 1000 * median(measured),
        "simulated median TTFT, ms": 1000 * median(predicted),
        "measured p90 TTFT, ms": 1000 * quantiles(measured, n=10)[-1],
        "simulated p90 TTFT, ms": 1000 * quantiles(predicted, n=10)[-1],
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; return the results that are written to the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=80)
    parser.add_argument("--rate", type=float, default=1.5, help="requests per second")
    parser.add_argument("--routing", nargs="+", choices=ROUTERS, default=list(ROUTERS))
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(arguments)

    config, records = run_engine(make_requests(options.requests, seed=1), threads=1)
    costs = fit_cost_model(records)
    requests = make_requests(options.requests, seed=0)
    arrivals = list(islice(arrival_times(options.rate, 1.0, 0), len(requests)))
    outcomes = [compare(requests, arrivals, routing, config, costs) for routing in options.routing]
    header = list(outcomes[0])
    rows = [
        [f"{each[name]:.3g}" if name != "routing" else each[name] for name in header]
        for each in outcomes
    ]
    print_table(f"{options.rate:g} requests/s, {NUM_REPLICAS} replicas", header, rows)
    results = {"outcomes": outcomes}
    report("cluster_accuracy", results, options.results)
    return results


if __name__ == "__main__":
    main()
