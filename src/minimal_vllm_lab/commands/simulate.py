"""``minimal-vllm simulate``: predict a model's performance on a GPU under given traffic."""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from minimal_vllm.cli.errors import Failure
from minimal_vllm.cli.options import SectionedCommand, field_options, given_options
from minimal_vllm.cli.trace import open_writers, trace_options
from minimal_vllm.config import EngineConfig
from minimal_vllm.demo import DEMO_MODEL_DIR
from minimal_vllm.trace.facts import engine_facts
from minimal_vllm.trace.writer import TraceWriter
from minimal_vllm_lab.commands.simulation_text import Outcome, render, table
from minimal_vllm_lab.sim.config import (
    ENGINE_OPTIONS,
    Achieved,
    FleetConfig,
    GuessingConfig,
    SimulationConfig,
    SyntheticConfig,
    TrafficConfig,
)
from minimal_vllm_lab.sim.sweep import check_effect, parse_sweep, variants
from minimal_vllm_lab.stats.slo import Slo


@trace_options
@field_options(
    EngineConfig, without={field.name for field in fields(EngineConfig)} - ENGINE_OPTIONS
)
@field_options(GuessingConfig, heading="Speculative decoding")
@field_options(SyntheticConfig, heading="Synthetic traffic")
@field_options(TrafficConfig, heading="Traffic")
@field_options(Achieved, heading="Achieved performance")
@field_options(FleetConfig, heading="Hardware")
@click.command(cls=SectionedCommand, short_help="Predict a model's speed on a GPU you don't have.")
@click.option(
    "--slo",
    metavar="LIMITS",
    help="Count requests that meet these limits, in ms, such as ttft:500,tpot:50 (also e2el).",
)
@click.option("--find-rate", is_flag=True, help="Find the highest --request-rate that meets --slo.")
@click.option(
    "--slo-attainment",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.99,
    show_default=True,
    help="Share of requests that must meet --slo for --find-rate.",
)
@click.option(
    "--sweep",
    "sweeps",
    metavar="OPTION=A,B,…",
    multiple=True,
    help="Simulate each of these values, and compare them. If repeated, all combinations.",
)
@click.option(
    "--plot", metavar="FILE", type=click.Path(path_type=Path), help="Plot the comparison to a file."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def simulate(
    ctx: click.Context,
    /,
    slo: str | None,
    find_rate: bool,
    slo_attainment: float,
    sweeps: Sequence[str],
    plot: Path | None,
    as_json: bool,
    trace: Path | None,
    **_: Any,
) -> None:
    """Run the engine's scheduler and block pool on a cost model; no GPU and no weights are needed.

    --model also takes a config.json file, or a name such as qwen3-8b or llama-3.1-8b.
    """
    if find_rate and slo is None:
        raise click.UsageError("--find-rate needs --slo, the latency limits to meet.")
    if plot and not sweeps:
        raise click.UsageError("--plot needs --sweep, the options to compare.")
    if trace and (sweeps or find_rate):
        raise click.UsageError("--trace records one simulation: leave out --sweep and --find-rate.")
    config, objective = _config(ctx), Slo.parse(slo) if slo else None
    choices = list(variants(config, [parse_sweep(each) for each in sweeps]))
    attainment = slo_attainment if find_rate else None
    writers = open_writers(ctx)
    if writers and config.fleet.replicas > 1:
        click.echo(f"{trace} will record the first of {config.fleet.replicas} replicas", err=True)
    if not sweeps:
        outcome = _run(config, objective, attainment, writers)
        click.echo(json.dumps(outcome, indent=2) if as_json else "\n".join(render(outcome)))
        return
    outcomes = [choice | _try(variant, objective, attainment) for choice, variant in choices]
    swept = list(choices[0][0])
    click.echo(json.dumps(outcomes, indent=2) if as_json else "\n".join(table(outcomes, swept)))
    if plot:
        _plot(outcomes, swept, plot)


def _config(ctx: click.Context) -> SimulationConfig:
    given = {"model": str(DEMO_MODEL_DIR), **given_options(ctx, EngineConfig)}
    achieved, synthetic = given_options(ctx, Achieved), given_options(ctx, SyntheticConfig)
    guessing = given_options(ctx, GuessingConfig)
    config = SimulationConfig(
        EngineConfig(**given),
        FleetConfig(**given_options(ctx, FleetConfig)),
        Achieved(**achieved),
        TrafficConfig(**given_options(ctx, TrafficConfig)),
        SyntheticConfig(**synthetic),
        GuessingConfig(**guessing),
    )
    check_effect(config, "achieved", achieved)
    check_effect(config, "synthetic", synthetic)
    check_effect(config, "guessing", guessing)
    return config


def _try(config: SimulationConfig, slo: Slo | None, attainment: float | None) -> Outcome:
    """Simulate a variant; return the error if it is impossible, so that the others are shown."""
    try:
        return _run(config, slo, attainment)
    except ValueError as error:
        return {"error": " ".join(str(error).split())}


def _run(
    config: SimulationConfig,
    slo: Slo | None,
    attainment: float | None,
    writers: Sequence[TraceWriter] = (),
) -> Outcome:
    """Simulate, at the highest rate that reaches ``attainment`` if that is given.

    Args:
        config: the simulation.
        slo: latency limits, or None.
        attainment: share of requests that must meet the limits, or None to use the given rate.
        writers: record the first replica.
    """
    from minimal_vllm_lab.sim.capacity import find_rate
    from minimal_vllm_lab.sim.simulation import make_design, simulate

    design = make_design(config)
    for writer in writers:
        writer.begin(engine_facts(config.engine, design), spell=None, started=0.0)
    if slo is None or attainment is None:
        rate = config.traffic.request_rate
        report = simulate(design, config, slo, lambda replica: () if replica else writers)
    else:
        rate, report = find_rate(design, config, slo, attainment)
    return {"num_gpu_blocks": design.num_blocks, "request_rate": rate, **report.to_json()}


def _plot(outcomes: Sequence[Outcome], swept: Sequence[str], path: Path) -> None:
    try:
        from minimal_vllm_lab.sim.plot import plot_outcomes
    except ModuleNotFoundError as error:
        raise Failure(
            f"--plot needs {error.name}, which is not installed: pip install 'minimal-vllm[bench]'"
        ) from error
    plot_outcomes(outcomes, swept, path)
