"""Requests per second that one GPU can serve: calculated by hand, and simulated."""

from itertools import pairwise
from typing import Final

from minimal_vllm.config import EngineConfig
from minimal_vllm_lab.sim.config import (
    FleetConfig,
    SimulationConfig,
    SyntheticConfig,
    TrafficConfig,
)
from minimal_vllm_lab.sim.cost_model import kv_bytes_per_token
from minimal_vllm_lab.sim.hardware import GPUS
from minimal_vllm_lab.sim.simulation import make_design, simulate

MODEL = "llama-3.2-3b"
GPU: Final = "l4"
TOKENS_IN = TOKENS_OUT = 256  # on average
LIMIT = 0.060  # seconds per token


def main() -> None:
    engine = EngineConfig(model=MODEL, max_model_len=16384)
    config = SimulationConfig(engine, FleetConfig(gpu=GPU))
    by_hand(config)
    print("\nsimulated   at once   rate x time   TPOT p99   TTFT p99   busy")
    for rate in (2, 6, 12):
        show(config, rate)


def by_hand(config: SimulationConfig) -> None:
    design = make_design(config)
    bandwidth = GPUS[GPU].bandwidth * 1e12 * config.achieved.bandwidth_fraction
    weights = design.model.num_parameters * 2  # bytes
    kv = kv_bytes_per_token(design.model, 2)
    overhead = config.achieved.step_overhead_ms / 1000
    context = TOKENS_IN + TOKENS_OUT / 2
    at_once = ((LIMIT - overhead) * bandwidth - weights) / (kv * context)
    fit = design.num_blocks * design.scheduler_config.block_size / context
    print(f"by hand, {MODEL} on {GPU}")
    print(
        f"   weights                 {weights / 1e9:8.2f} GB, read in {weights / bandwidth:.3f} s"
    )
    print(f"   keys and values         {kv:8,} bytes per token")
    print(f"   requests at once        {at_once:8.0f} at {1e3 * LIMIT:.0f} ms per step")
    print(f"   that the memory holds   {fit:8.0f}")
    print(f"   requests per second     {at_once / LIMIT / TOKENS_OUT:8.1f}")


def show(config: SimulationConfig, rate: int) -> None:
    seen: list[tuple[float, int]] = []  # when a step began, and how many requests were there
    config = SimulationConfig(
        config.engine,
        config.fleet,
        traffic=TrafficConfig(request_rate=rate),
        synthetic=SyntheticConfig(
            num_prompts=80 * rate, input_len=TOKENS_IN, output_len=TOKENS_OUT
        ),
    )
    report = simulate(
        make_design(config),
        config,
        observers_of=lambda _: [
            lambda step: seen.append((step.started, step.num_running + step.num_waiting))
        ],
    )
    seen.append((report.duration, 0))
    at_once = sum(n * (end - begin) for (begin, n), (end, _) in pairwise(seen)) / report.duration
    expected = report.completed / report.duration * (report.latencies["mean_e2el_ms"] or 0) / 1000
    assert abs(at_once - expected) < 0.02 * expected  # Little's law
    tpot, ttft = report.latencies["p99_tpot_ms"], report.latencies["p99_ttft_ms"]
    print(
        f"{rate:7} /s   {at_once:7.1f}   {expected:11.1f}   "
        f"{tpot:5.0f} ms   {ttft:5.0f} ms   {report.busy:4.0%}"
    )


if __name__ == "__main__":
    main()
