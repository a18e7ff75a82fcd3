"""Check of the exercise beat-fcfs: simulate a scheduler and first come, first served."""

from types import ModuleType
from typing import TYPE_CHECKING, Any

from minimal_vllm.config import EngineConfig
from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule
from minimal_vllm_lab.check.scheduler import check_scheduler
from minimal_vllm_lab.check.search import History, find_mistake

if TYPE_CHECKING:
    from minimal_vllm_lab.sim.metrics import Report

CHAPTER = "14-capacity"
TRAFFIC: dict[str, Any] = {"request_rate": 10.0}
SYNTHETIC: dict[str, Any] = {"num_prompts": 600, "input_len": 3000, "output_len": 60}
ENGINE: dict[str, Any] = {"max_num_seqs": 64, "max_num_batched_tokens": 2048}
SEEDS = (0, 1, 2)
MIN_GAIN = 0.1
ALL_FINISH = Rule(
    "All requests finish.",
    "A request that is served last must still be served at some point.",
    CHAPTER,
)
FASTER = Rule(
    "The 99th percentile of the time to first token is at least 10 % below that of fcfs.",
    "Users complain about the tail. If only the longest prompts are served last, few requests are "
    "affected. But if they wait too long, they become the tail themselves, so let the order also "
    "depend on the arrival.",
    CHAPTER,
)


def check_order(module: ModuleType) -> Lesson | None:
    """Check ``MyScheduler`` as a scheduler, and then compare its tail latency with that of fcfs.

    Returns:
        A lesson about a broken rule, or None if all hold.
    """
    return check_scheduler(module.MyScheduler) or find_mistake(
        lambda history: _race(module.MyScheduler, history)
    )


def _race(scheduler: type, history: History) -> None:
    fcfs, mine = (_tail(each, history) for each in (None, scheduler))
    if mine > (1 - MIN_GAIN) * fcfs:
        raise Broken(
            FASTER,
            f"p99 TTFT {mine:,.0f} ms ({mine / fcfs - 1:+.0%})",
            f"at most {(1 - MIN_GAIN) * fcfs:,.0f} ms: first come, first served has {fcfs:,.0f} ms",
        )


def _tail(scheduler: type | None, history: History) -> float:
    """Return the 99th percentile of the time to first token in ms, averaged over the seeds."""
    name = scheduler.__name__ if scheduler else "first come, first served"
    tails = []
    for seed in SEEDS:
        report = _simulate(scheduler, seed)
        if report.completed != SYNTHETIC["num_prompts"]:
            raise Broken(ALL_FINISH, f"{report.completed} finished", f"{SYNTHETIC['num_prompts']}")
        tails.append(report.latencies["p99_ttft_ms"] or 0.0)
    shown = ", ".join(f"{tail:,.0f}" for tail in tails)
    history.note(f"{name}: p99 TTFT {shown} ms with seeds {', '.join(map(str, SEEDS))}")
    return sum(tails) / len(tails)


def _simulate(scheduler: type | None, seed: int) -> "Report":
    from minimal_vllm_lab.sim.config import (
        FleetConfig,
        SimulationConfig,
        SyntheticConfig,
        TrafficConfig,
    )
    from minimal_vllm_lab.sim.simulation import make_design, simulate

    config = SimulationConfig(
        EngineConfig(model="qwen3-8b", scheduler=scheduler, **ENGINE),
        FleetConfig(gpu="h100"),
        traffic=TrafficConfig(seed=seed, **TRAFFIC),
        synthetic=SyntheticConfig(**SYNTHETIC),
    )
    return simulate(make_design(config), config)
