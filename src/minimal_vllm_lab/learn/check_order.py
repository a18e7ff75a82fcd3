"""Check of the exercise beat-fcfs: simulate a scheduler and first come, first served."""

from dataclasses import dataclass
from statistics import mean
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
KNOWN_SEEDS = range(3)
NUM_UNKNOWN = 6
"""Number of simulations with an unknown seed: the tail of a single one is a matter of luck."""
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


STILL_FASTER = Rule(
    "With traffic that is not known in advance, the tail is not longer than that of fcfs.",
    "An order that fits one list of requests by chance is of no use for the next one.",
    CHAPTER,
)


@dataclass(frozen=True)
class Race:
    """Tail latencies of a scheduler and of first come, first served, with the same traffic."""

    mine: float
    """99th percentile of the time to first token in ms, averaged over the runs."""
    fcfs: float
    """Tail latency of first come, first served, likewise."""

    @property
    def gain(self) -> float:
        """Part of the tail latency that the scheduler saves; negative if it adds to it."""
        return 1 - self.mine / self.fcfs


def check_order(module: ModuleType, seed: int | None = None) -> Lesson | None:
    """Check ``MyScheduler`` as a scheduler, and then compare its tail latency with that of fcfs.

    Returns:
        A lesson about a broken rule, or None if all hold.
    """

    def run(history: History) -> None:
        result = race(module, history, seed)
        rule, least = (FASTER, MIN_GAIN) if seed is None else (STILL_FASTER, 0.0)
        if result.gain < least:
            raise Broken(
                rule,
                f"p99 TTFT {result.mine:,.0f} ms ({-result.gain:+.0%})",
                f"at most {(1 - least) * result.fcfs:,.0f} ms: first come, first served has "
                f"{result.fcfs:,.0f} ms",
            )

    return check_scheduler(module.MyScheduler, seed=seed) or find_mistake(run)


def race(module: ModuleType, history: History, seed: int | None = None) -> Race:
    """Simulate ``MyScheduler`` and first come, first served.

    Args:
        module: the learner's module.
        history: takes the tail latencies of all runs.
        seed: seed of the first run of an unknown traffic. Default: the traffic of every check.

    Raises:
        Broken: some requests did not finish.
    """
    seeds = KNOWN_SEEDS if seed is None else range(seed, seed + NUM_UNKNOWN)
    fcfs = [_simulate(None, each) for each in seeds]
    mine = [_simulate(module.MyScheduler, each) for each in seeds]
    for one, other in zip(mine, fcfs, strict=True):
        if one.completed < other.completed:
            raise Broken(ALL_FINISH, f"{one.completed} finished", f"{other.completed}")
    names = ("first come, first served", module.MyScheduler.__name__)
    for name, reports in zip(names, (fcfs, mine), strict=True):
        shown = ", ".join(f"{_tail(report):,.0f}" for report in reports)
        history.note(f"{name}: p99 TTFT {shown} ms with seeds {', '.join(map(str, seeds))}")
    return Race(mean(map(_tail, mine)), mean(map(_tail, fcfs)))


def _tail(report: "Report") -> float:
    """Return the 99th percentile of the time to first token in ms."""
    return report.latencies["p99_ttft_ms"] or 0.0


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
