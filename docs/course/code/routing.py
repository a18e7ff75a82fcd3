"""Four replicas behind several routers: conversations, and one prefix that everybody has."""

import sys
from dataclasses import replace
from typing import Any, Final

from minimal_vllm.config import EngineConfig
from minimal_vllm.plugin import load_class
from minimal_vllm.routing import ROUTERS, Router
from minimal_vllm_lab.sim.cluster import Cluster
from minimal_vllm_lab.sim.config import (
    FleetConfig,
    SimulationConfig,
    SyntheticConfig,
    TrafficConfig,
)
from minimal_vllm_lab.sim.metrics import Metrics
from minimal_vllm_lab.sim.simulation import make_design, make_jobs

NUM_REPLICAS = 4
GPU: Final = "h100"
TRAFFIC = {
    "conversations of four turns": (15, SyntheticConfig(num_prompts=150, num_turns=4)),
    "the same 2,000 tokens first": (60, SyntheticConfig(num_prompts=600, prefix_len=2000)),
}
"""Requests per second, and what they are."""


def main() -> None:
    routers: dict[str, type[Router[Any]]] = dict(ROUTERS)
    for part in sys.argv[1:]:  # as my_file.py:MyRouter
        routers[part] = load_class(part, Router)
    for title, (rate, synthetic) in TRAFFIC.items():
        print(f"{title:30} hits     TTFT      p99   replicas' time at work")
        config = SimulationConfig(
            EngineConfig(model="qwen3-8b", max_model_len=16384),
            FleetConfig(gpu=GPU),
            traffic=TrafficConfig(request_rate=rate),
            synthetic=replace(synthetic, input_len=500, output_len=100),
        )
        for name, router in routers.items():
            show(name, config, router)


def show(name: str, config: SimulationConfig, router_class: type[Router[Any]]) -> None:
    """Serve the traffic, and print what it was like."""
    design, metrics = make_design(config), Metrics(None)
    replicas = [design.make_replica() for _ in range(NUM_REPLICAS)]
    router = router_class(range(NUM_REPLICAS), config.engine.block_size)
    Cluster(replicas, router, metrics).run(make_jobs(config))
    found = metrics.report(replicas).to_json()
    seconds = " ".join(f"{replica.tally.busy_seconds:4.1f}" for replica in replicas)
    print(
        f"   {name:27} {found['prefix_cache_hit_rate']:4.0%} {found['mean_ttft_ms']:5.0f} ms"
        f" {found['p99_ttft_ms']:5.0f} ms   {seconds} s"
    )


if __name__ == "__main__":
    main()
