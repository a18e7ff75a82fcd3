"""How many requests per second a fleet holds within an objective."""

from collections.abc import Callable
from dataclasses import replace
from math import ceil

from minimal_vllm_lab.sim.config import SimulationConfig
from minimal_vllm_lab.sim.metrics import Report
from minimal_vllm_lab.sim.simulation import Design, simulate
from minimal_vllm_lab.stats.slo import Slo

PRECISION = 1.02
"""The rate is found up to 2 %."""
FIRST_RATE = 1.0
LIMITS = (1e-3, 1e5)
"""Beyond these rates nobody looks."""
LEAST_SECONDS = 120
"""So long the requests keep coming, or else a queue that grows for ever would not be noticed."""


def find_rate(
    plan: Design, config: SimulationConfig, slo: Slo, attainment: float
) -> tuple[float, Report]:
    """The highest rate of requests at which enough of them meet the objective.

    At each rate there are ``num_prompts`` requests, or those of ``LEAST_SECONDS`` if that is more.

    Args:
        plan: the engines.
        config: how many of them there are, and what is asked of them.
        slo: the objective.
        attainment: the share of requests that must meet it, from 0 to 1.

    Returns:
        The rate, per second, and what it is like there.

    Raises:
        ValueError: no rate holds, or all do, or the workload has a rate of its own.
    """
    if config.traffic.workload != "synthetic" or config.traffic.request_rate:
        raise ValueError(
            "the highest rate is found for synthetic traffic without a request_rate: leave out "
            "request_rate and workload"
        )

    def simulate_at(rate: float) -> Report:
        num_prompts = max(config.synthetic.num_prompts, ceil(rate * LEAST_SECONDS))
        changed = replace(
            config,
            traffic=replace(config.traffic, request_rate=rate),
            synthetic=replace(config.synthetic, num_prompts=num_prompts),
        )
        return simulate(plan, changed, slo)

    return bisect(simulate_at, attainment)


def bisect(simulate_at: Callable[[float], Report], attainment: float) -> tuple[float, Report]:
    """Double or halve the rate until one holds and one doesn't; then close in on the border."""
    held: tuple[float, Report] | None = None
    failed: float | None = None
    rate = FIRST_RATE
    while held is None or failed is None or failed / held[0] > PRECISION:
        if not LIMITS[0] < rate < LIMITS[1]:
            which = "no rate of requests meets it" if held is None else "it is met at any rate"
            raise ValueError(f"there is no rate to find for this slo: {which}")
        report = simulate_at(rate)
        if (report.attainment or 0.0) >= attainment:
            held = rate, report
        else:
            failed = rate
        rate = _next_rate(held[0] if held else None, failed)
    return held


def _next_rate(held: float | None, failed: float | None) -> float:
    if held is None:
        return (failed or FIRST_RATE) / 2
    return 2 * held if failed is None else (held * failed) ** 0.5
