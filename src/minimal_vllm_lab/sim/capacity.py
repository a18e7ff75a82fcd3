"""Capacity: the highest request rate at which a fleet meets a latency objective."""

from collections.abc import Callable
from dataclasses import replace
from math import ceil

from minimal_vllm_lab.sim.config import SimulationConfig
from minimal_vllm_lab.sim.metrics import Report
from minimal_vllm_lab.sim.simulation import Design, simulate
from minimal_vllm_lab.stats.slo import Slo

PRECISION = 1.02
"""Ratio between the rates tried above and below the result: it is found within 2 %."""
FIRST_RATE = 1.0
"""First rate to try, in requests per second."""
LIMITS = (1e-3, 1e5)
"""Lowest and highest rate to try, in requests per second."""
MIN_SECONDS = 120
"""Minimum time in seconds during which requests arrive: in a shorter run, a queue that grows
without limit would go unnoticed."""


def find_rate(
    design: Design, config: SimulationConfig, slo: Slo, attainment: float
) -> tuple[float, Report]:
    """Find the highest request rate at which enough requests meet the objective.

    At each rate, ``num_prompts`` requests are simulated, or as many as arrive in ``MIN_SECONDS`` if
    that is more.

    Args:
        design: design of each engine.
        config: number of engines, and their workload.
        slo: service level objective.
        attainment: fraction of requests that must meet the objective, from 0 to 1.

    Returns:
        The rate in requests per second, and the report of its simulation.

    Raises:
        ValueError: no rate meets the objective, every rate meets it, or the workload sets
            its own rate.
    """
    if config.traffic.workload != "synthetic" or config.traffic.request_rate:
        raise ValueError(
            "the highest rate can only be found for synthetic traffic without a request_rate: "
            "leave out request_rate and workload"
        )

    def simulate_at(rate: float) -> Report:
        num_prompts = max(config.synthetic.num_prompts, ceil(rate * MIN_SECONDS))
        changed = replace(
            config,
            traffic=replace(config.traffic, request_rate=rate),
            synthetic=replace(config.synthetic, num_prompts=num_prompts),
        )
        return simulate(design, changed, slo)

    return bisect(simulate_at, attainment)


def bisect(simulate_at: Callable[[float], Report], attainment: float) -> tuple[float, Report]:
    """Find the highest rate that reaches the attainment, by doubling or halving, then bisecting.

    Args:
        simulate_at: simulates a rate in requests per second.
        attainment: fraction of requests that must meet the objective, from 0 to 1.

    Returns:
        The rate in requests per second, and its report.

    Raises:
        ValueError: no rate reaches the attainment, or every rate does.
    """
    held: tuple[float, Report] | None = None
    failed: float | None = None
    rate = FIRST_RATE
    while held is None or failed is None or failed / held[0] > PRECISION:
        if not LIMITS[0] < rate < LIMITS[1]:
            why = "no request rate meets it" if held is None else "every request rate meets it"
            raise ValueError(f"there is no highest rate for this slo: {why}; change the limits")
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
