"""``minimal-vllm ablate``: measure what each idea of the engine is worth."""

import json
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from minimal_vllm.cli.errors import Failure
from minimal_vllm.cli.options import FieldOption, SectionedCommand, field_options, given_options
from minimal_vllm.cli.trace import open_writers_of, trace_options
from minimal_vllm.config import EngineConfig
from minimal_vllm.demo import DEMO_MODEL_DIR
from minimal_vllm.plugin import part_name
from minimal_vllm_lab.ablate.ideas import ALL_ON, IDEAS
from minimal_vllm_lab.sim.config import (
    ENGINE_OPTIONS,
    Achieved,
    FleetConfig,
    GuessingConfig,
    SimulationConfig,
    SyntheticConfig,
    TrafficConfig,
)

if TYPE_CHECKING:
    from minimal_vllm.trace.writer import TraceWriter
    from minimal_vllm_lab.ablate.study import Stage
    from minimal_vllm_lab.bench.statistics import Fields

WITHOUT_EFFECT = frozenset(
    {
        *("seed", "scheduling_policy"),  # the workload has a seed, and requests no priorities
        *("tokenizer", "chat_template", "max_logprobs"),  # there is no text
        *("generation_config", "override_generation_config"),  # the workload sets its own
        "tensor_parallel_size",  # the parts are taken out of one process
        "hf_overrides",  # the simulator reads config.json as it is
    }
)
"""Engine options that would not change the result, and so are not offered."""

SMALL_ENGINE = {"num_gpu_blocks_override": 256, "max_num_batched_tokens": 256}
SMALL_TRAFFIC = {"request_rate": 8.0}
SMALL_SYNTHETIC = {
    "num_prompts": 64,
    "input_len": 160,
    "output_len": 64,
    "prefix_len": 128,
    "num_prefixes": 8,
}
"""Default traffic for the built-in model: much for its 256 blocks, and enough for two CPU cores."""


@field_options(EngineConfig, without=WITHOUT_EFFECT, defaults={"skip_tokenizer_init": True})
@field_options(GuessingConfig, heading="Speculative decoding")
@field_options(SyntheticConfig, heading="Synthetic traffic", without={"num_turns", "think_time"})
@field_options(TrafficConfig, heading="Traffic")
@field_options(Achieved, heading="Achieved performance")
@field_options(FleetConfig, heading="Hardware", without={"replicas", "routing"})
@trace_options
@click.command(cls=SectionedCommand, short_help="Measure what each idea of the engine is worth.")
@click.option(
    "--without",
    "names",
    type=click.Choice(list(IDEAS)),
    multiple=True,
    help="Switch off only this idea. Can be repeated.",
)
@click.option(
    "--repeats",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of runs of everything; medians are reported.",
)
@click.option(
    "--claims", is_flag=True, help="Reproduce the claims of papers, on their own traffic."
)
@click.option("--simulate", "simulated", is_flag=True, help="Simulate, on a cost model of --gpu.")
@click.option(
    "--cpu-time",
    is_flag=True,
    help="Measure this process's CPU time on one core, for a machine that is busy otherwise.",
)
@click.option(
    "--json",
    "json_file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write all results to this JSON file.",
)
@click.option(
    "--plot",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Plot the comparison to this file.",
)
@click.pass_context
def ablate(
    ctx: click.Context,
    /,
    names: Sequence[str],
    repeats: int,
    claims: bool,
    simulated: bool,
    cpu_time: bool,
    json_file: Path | None,
    plot: Path | None,
    **_: Any,
) -> None:
    """Serve the same requests with all ideas of the engine, and without each of them.

    Without --model: the built-in model, 256 blocks, a budget of 256 tokens per step, and 64
    chat-like requests at 8 per second, each with one of 8 prefixes of 128 tokens.

    --trace writes one file per variant, and adds the variant to its name: a.jsonl becomes
    a-all-on.jsonl, a-without-paging.jsonl and so on.
    """
    _check_options(ctx, claims, simulated, names, plot)
    from minimal_vllm_lab.ablate.study import simulation, this_machine

    config = _config(ctx)
    stage = simulation() if simulated else this_machine(cpu_time=cpu_time)
    if claims:
        findings = _run_claims(config, stage)
    else:
        findings = _run_study(ctx, config, stage, names, repeats, simulated=simulated, plot=plot)
    for found in findings:
        if json_file:  # written after each run, so that an interruption loses nothing
            json_file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if json_file:
        click.echo(f"Written to {json_file}")


def _config(ctx: click.Context) -> SimulationConfig:
    engine, traffic = given_options(ctx, EngineConfig), given_options(ctx, TrafficConfig)
    synthetic = given_options(ctx, SyntheticConfig)
    if "model" not in engine:
        engine = {"model": str(DEMO_MODEL_DIR), **SMALL_ENGINE, **engine}
        if "workload" not in traffic:
            traffic, synthetic = SMALL_TRAFFIC | traffic, SMALL_SYNTHETIC | synthetic
    return SimulationConfig(
        EngineConfig(**{"skip_tokenizer_init": True, **engine}),
        FleetConfig(**given_options(ctx, FleetConfig)),
        Achieved(**given_options(ctx, Achieved)),
        TrafficConfig(**traffic),
        SyntheticConfig(**synthetic),
        GuessingConfig(**given_options(ctx, GuessingConfig)),
    )


def _check_options(
    ctx: click.Context, claims: bool, simulated: bool, names: Sequence[str], plot: Path | None
) -> None:
    """Reject options that would have no effect."""
    if ctx.params["cpu_time"] and (simulated or ctx.params["device"] != "cpu"):
        raise click.UsageError("--cpu-time needs --device cpu, and can't be used with --simulate.")
    if simulated:
        real = {field.name for field in fields(EngineConfig)} - ENGINE_OPTIONS
        _reject(ctx, EngineConfig, "has no effect on a simulation", real)
        if not ctx.params["speculative_config"]:
            _reject(ctx, GuessingConfig, "needs --speculative-config")
    else:
        _reject(ctx, FleetConfig, "needs --simulate")
        _reject(ctx, Achieved, "needs --simulate")
        _reject(ctx, GuessingConfig, "needs --simulate")
    if claims:
        reason = "can't be used with --claims, which have their own traffic"
        _reject(ctx, TrafficConfig, reason)
        _reject(ctx, SyntheticConfig, reason)
        if names or plot or ctx.params["trace"] or ctx.params["repeats"] > 1:
            raise click.UsageError(
                "--without, --repeats, --plot and --trace can't be used with --claims."
            )
    elif ctx.params["workload"] != "synthetic":
        _reject(ctx, SyntheticConfig, "needs --workload synthetic")


def _reject(
    ctx: click.Context, owner: type, reason: str, names: Collection[str] | None = None
) -> None:
    """Reject the options for these fields of ``owner``, if any was given.

    Args:
        ctx: the command's context.
        owner: the dataclass with the fields.
        reason: end of the error message, after the name of the option.
        names: names of the fields. None: all fields.

    Raises:
        UsageError: such an option was given.
    """
    for param in ctx.command.params:
        is_given = ctx.get_parameter_source(param.name or "") is ParameterSource.COMMANDLINE
        is_owned = isinstance(param, FieldOption) and param.owner is owner
        if is_owned and is_given and (names is None or param.name in names):
            raise click.UsageError(f"{param.opts[0]} {reason}.")


def _run_study(
    ctx: click.Context,
    config: SimulationConfig,
    stage: "Stage",
    names: Sequence[str],
    repeats: int,
    *,
    simulated: bool,
    plot: Path | None,
) -> Iterator[dict[str, Any]]:
    """Yield all results so far after each run, and print the tables at the end."""
    from tqdm import tqdm

    from minimal_vllm_lab.ablate.report import tables
    from minimal_vllm_lab.ablate.study import medians, possible_ideas, run_study

    draw = _plotter(plot) if plot else None
    config = replace(config, engine=stage.settle(config))
    chosen = possible_ideas(config.engine, names, simulated=simulated)
    bar = tqdm(
        run_study(config, chosen, stage.measure, repeats, _writers(ctx, chosen)),
        desc="Runs",
        total=repeats * (1 + len(chosen)),
        disable=None,  # no progress bar unless stderr is a terminal
    )
    runs, results = [], []
    for name, result in bar:
        if not simulated:  # a run of the real engine takes minutes
            bar.write(f"{name}: {result['output_throughput']:,.0f} tokens/s", file=sys.stderr)
        runs.append((name, result))
        results = medians(runs)
        yield {"config": _described(config), "results": results}
    click.echo("\n".join(tables(results)))
    if plot and draw:
        draw(results, plot)


def _writers(ctx: click.Context, chosen: Sequence[str]) -> "dict[str, TraceWriter]":
    """Return the trace writer of each variant, or nothing if --trace is not set."""
    in_files = {ALL_ON: ALL_ON.replace(" ", "-")} | {name: f"without-{name}" for name in chosen}
    writers = open_writers_of(ctx, list(in_files.values()))
    return {name: writers[in_file] for name, in_file in in_files.items() if in_file in writers}


def _run_claims(config: SimulationConfig, stage: "Stage") -> Iterator[dict[str, Any]]:
    """Print each claim beside its measurement, and yield all results so far after each claim."""
    from minimal_vllm_lab.ablate.claims import CLAIMS, run_claim, settings

    found: dict[str, Any] = {}
    for name, claim in CLAIMS.items():
        own = settings(claim, config)
        own = replace(own, engine=stage.settle(own))
        click.echo(f"{claim.title}\n{_wrapped('source', claim.source)}")
        click.echo(f"{_wrapped('published', claim.published)}\n{_wrapped('here', claim.here)}")
        results = []
        for result in run_claim(claim, own, stage.measure):
            click.echo(_wrapped(result["system"], result["measured"]))
            results.append(result)
        click.echo()
        found[name] = {"config": _described(own), "published": claim.published, "results": results}
        yield found


def _wrapped(label: str, text: str) -> str:
    return fill(f"  {label:<18}{text}", 100, subsequent_indent=" " * 20)


def _described(config: SimulationConfig) -> dict[str, Any]:
    """Return the configuration as JSON values, with the names of classes."""
    sections = asdict(config)
    sections["engine"] = {
        name: part_name(value) if isinstance(value, type) else value
        for name, value in sections["engine"].items()
    }
    return sections


def _plotter(path: Path) -> "Callable[[Sequence[Fields], Path], None]":
    """Return the function that plots a study, after checking that it can write to ``path``.

    Raises:
        Failure: matplotlib is not installed.
        ValueError: the folder does not exist, or the suffix is not supported.
    """
    try:
        from minimal_vllm_lab.ablate.plot import plot_study
        from minimal_vllm_lab.bench.plot import check_format
    except ModuleNotFoundError as error:
        raise Failure(
            f"--plot needs {error.name}, which is not installed: pip install 'minimal-vllm[bench]'"
        ) from error
    check_format(str(path))
    return plot_study
