"""Cost of a simulated request, and how it depends on the number of requests.

python -m benchmarks.sim_scale [--requests 10000 100000 1000000]

Each row is a separate process. It simulates chat-like requests, 256 tokens in and 256 out on
average, for one of the fleets in ``FLEETS``. Times are the process's CPU time, so other work on the
machine has little effect. (It has some, because cores share caches.)
"""

import argparse
import resource
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, print_table, report
from minimal_vllm.config import EngineConfig
from minimal_vllm_lab.sim.config import (
    FleetConfig,
    SimulationConfig,
    SyntheticConfig,
    TrafficConfig,
)
from minimal_vllm_lab.sim.simulation import make_design, simulate


@dataclass(frozen=True)
class Fleet:
    """Simulated fleet, and its number of requests per second."""

    model: str
    gpu: str
    replicas: int
    routing: str
    request_rate: float


FLEETS = (
    Fleet("llama-3.1-8b", "h200", 1, "round-robin", 30),
    Fleet("llama-3.1-8b", "h100", 100, "least-loaded", 1000),
    Fleet("qwen3-4b", "4090", 1000, "prefix-aware", 4000),
)
"""Fleets of 1, 100 and 1,000 replicas."""


@dataclass(frozen=True)
class Cost:
    """Cost of one simulation."""

    fleet: Fleet
    num_requests: int
    num_tokens: int
    """Number of generated tokens."""
    simulated_seconds: float
    """Simulated time."""
    seconds: float
    """CPU time of the simulation."""
    peak_mb: float
    """Peak RAM of its process in MB."""
    requests_per_step: float
    """Mean number of requests per step."""


def measure(fleet: Fleet, num_requests: int) -> Cost:
    """Simulate in this process."""
    config = SimulationConfig(
        EngineConfig(model=fleet.model, max_model_len=16_384),
        FleetConfig(gpu=fleet.gpu, replicas=fleet.replicas, routing=fleet.routing),  # type: ignore[arg-type]
        traffic=TrafficConfig(request_rate=fleet.request_rate),
        synthetic=SyntheticConfig(num_prompts=num_requests),
    )
    design = make_design(config)
    begun = time.process_time()
    found = simulate(design, config)
    seconds = time.process_time() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    per_step = found.total_output_tokens / found.num_steps
    tokens = found.total_output_tokens
    return Cost(fleet, num_requests, tokens, found.duration, seconds, peak, per_step)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; return the results that are written to the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, nargs="+", default=[10**4, 10**5, 10**6])
    parser.add_argument("--fleets", type=int, nargs="+", default=list(range(len(FLEETS))))
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(arguments)

    costs = [
        _in_a_new_process(FLEETS[index], count)
        for index in options.fleets
        for count in options.requests
    ]
    print_table(
        "Cost of simulations",
        ["fleet", "requests", "hours simulated", "CPU s", "µs per request", "batch", "peak MB"],
        [
            [
                f"{cost.fleet.replicas:,} x {cost.fleet.gpu}, {cost.fleet.model}, "
                f"{cost.fleet.routing}",
                f"{cost.num_requests:,}",
                f"{cost.simulated_seconds / 3600:.2f}",
                f"{cost.seconds:,.0f}",
                f"{1e6 * cost.seconds / cost.num_requests:,.0f}",
                f"{cost.requests_per_step:.1f}",
                f"{cost.peak_mb:,.0f}",
            ]
            for cost in costs
        ],
    )
    results = {"costs": [asdict(cost) for cost in costs]}
    report("sim_scale", results, options.results)
    return results


def _in_a_new_process(fleet: Fleet, num_requests: int) -> Cost:
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        cost = pool.submit(measure, fleet, num_requests).result()
    print(
        f"{fleet.replicas:,} replicas, {num_requests:,} requests: {cost.seconds:,.0f} s", flush=True
    )
    return cost


if __name__ == "__main__":
    main()
