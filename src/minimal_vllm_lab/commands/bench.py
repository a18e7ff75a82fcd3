"""``minimal-vllm bench``: measure the speed of a server, or of the engine alone."""

import asyncio
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from minimal_vllm.cli.errors import Failure
from minimal_vllm.cli.options import SectionedCommand, field_options, given_options
from minimal_vllm.cli.trace import make_llm, trace_options
from minimal_vllm.cli.vllm_flags import VllmCommand
from minimal_vllm.config import EngineConfig
from minimal_vllm_lab.bench.config import Load, Workload

NOT_MEASURED = frozenset(
    {
        "seed",  # the workload's seed is used for the engine too
        "skip_tokenizer_init",
        "generation_config",
        "override_generation_config",
        "chat_template",
        "scheduling_policy",
        "max_logprobs",
    }
)
"""Engine options that would not change the result, and so are not offered."""

OTHER_DATASET = {"random": "prefix_repetition", "prefix_repetition": "random"}

SHORT_NAMES = {
    "random_input_len": "input-len",
    "random_output_len": "output-len",
    "random_prefix_len": "prefix-len",
}
"""Names of these fields in vllm bench throughput and vllm bench latency."""

BATCH = {"num_prompts": 8, "random_input_len": 32, "random_output_len": 128, "seed": 0}
"""Fields of the workload for ``bench latency``, with vLLM's defaults."""

WITHOUT_TEXT = click.option(
    "--disable-detokenize",
    is_flag=True,
    help="Leave out the time that detokenization takes.",
)
NUM_OUTPUTS = click.option(
    "--n",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of outputs per prompt.",
)
OUTPUT_JSON = click.option(
    "--output-json",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the result to this JSON file.",
)


@click.group(short_help="Measure the speed of a server, or of the engine alone.")
def bench() -> None:
    """Benchmark with the options and the result fields of vllm bench."""


@field_options(Workload, heading="Workload")
@field_options(Load, heading="Load")
@bench.command(cls=VllmCommand, short_help="Benchmark a server with OpenAI's API.")
@click.pass_context
def serve(ctx: click.Context, /, **_: Any) -> None:
    """Send requests to a server with OpenAI's API, and report throughput and latencies.

    If the server has vLLM's /tokenize and the endpoint is for completions, prompts have exact
    lengths in tokens. Otherwise they have that many words. Reported lengths are as counted by the
    server. The API key is read from the environment variable OPENAI_API_KEY.
    """
    workload, load = _workload(ctx), _load(ctx)
    with _extra("bench serve"):
        from minimal_vllm_lab.bench.report import errors_report, serve_report, sweep_table
        from minimal_vllm_lab.bench.serve import run_serve, save
    if load.plot:
        with _extra("--plot"):
            from minimal_vllm_lab.bench.plot import check_format, plot_latencies
        check_format(load.plot)
    results = asyncio.run(run_serve(workload, load))
    for result in results:
        click.echo("\n".join(serve_report(result)))
        for line in errors_report(result):
            click.echo(line, err=True)
    if len(results) > 1:
        click.echo("\n".join(sweep_table(results)))
    if load.save_result:
        for path in save(results, load):
            click.echo(f"Written to {path}")
    if load.plot:
        plot_latencies(results, load, load.plot)
        click.echo(f"Plotted to {load.plot}")


def _workload(ctx: click.Context) -> Workload:
    """Return the workload, and reject options of another dataset.

    Raises:
        UsageError: an option is for another dataset.
    """
    given = given_options(ctx, Workload)
    workload = Workload(**given)
    other = OTHER_DATASET[workload.dataset_name]
    misplaced = {name for name in given if name.startswith(f"{other}_")}
    for option in ctx.command.params:
        if option.name in misplaced:
            raise click.UsageError(f"{option.opts[0]} needs --dataset-name={other}.")
    return workload


def _load(ctx: click.Context) -> Load:
    """Return the load, and reject options that would have no effect.

    Raises:
        UsageError: an option has no effect without another one.
    """
    given = given_options(ctx, Load)
    load = Load(**given)
    has_rates = all(map(math.isfinite, load.rates))
    for name, works, reason in (
        ("host", load.base_url is None, "can't be used with --base-url"),
        ("port", load.base_url is None, "can't be used with --base-url"),
        ("save_detailed", load.save_result, "needs --save-result"),
        ("result_dir", load.save_result, "needs --save-result"),
        ("result_filename", load.save_result, "needs --save-result"),
        (
            "result_filename",
            len(load.rates) == 1,
            "needs a single --request-rate, because each rate is saved to its own file",
        ),
        ("label", load.save_result, "needs --save-result"),
        ("burstiness", has_rates, "needs a --request-rate"),
        ("plot", has_rates, "needs a --request-rate, or several"),
    ):
        if name in given and not works:
            raise click.UsageError(f"--{name.replace('_', '-')} {reason}.")
    return load


@contextmanager
def _extra(what: str) -> Iterator[None]:
    """Turn a missing library into an error that says what to install.

    Args:
        what: the command or option that needs the library.

    Raises:
        Failure: a library is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise Failure(
            f"{what} needs {error.name}, which is not installed: pip install 'minimal-vllm[bench]'"
        ) from error


@trace_options
@field_options(EngineConfig, without=NOT_MEASURED)
@field_options(Workload, heading="Workload", named=SHORT_NAMES)
@bench.command(cls=SectionedCommand, short_help="Measure the tokens per second of many prompts.")
@NUM_OUTPUTS
@WITHOUT_TEXT
@OUTPUT_JSON
@click.pass_context
def throughput(
    ctx: click.Context, /, n: int, disable_detokenize: bool, output_json: Path | None, **_: Any
) -> None:
    """Complete random prompts, as many at once as the engine can run."""
    workload = _workload(ctx)
    from minimal_vllm_lab.bench.offline import run_throughput

    llm = make_llm(ctx, seed=workload.seed, **given_options(ctx, EngineConfig))
    result = run_throughput(llm, workload, n, detokenize=not disable_detokenize)
    num_output = result["total_num_output_tokens"]
    click.echo(
        f"Throughput: {result['requests_per_second']:.2f} requests/s, "
        f"{result['tokens_per_second']:.2f} total tokens/s, "
        f"{num_output / result['elapsed_time']:.2f} output tokens/s\n"
        f"Total num prompt tokens:  {result['total_num_prompt_tokens']}\n"
        f"Total num output tokens:  {num_output}"
    )
    _write(result, output_json)


@trace_options
@field_options(EngineConfig, without=NOT_MEASURED, defaults={"enable_prefix_caching": False})
@field_options(
    Workload,
    heading="Workload",
    without={field.name for field in fields(Workload)} - BATCH.keys(),
    named={**SHORT_NAMES, "num_prompts": "batch-size"},
    defaults=BATCH,
)
@bench.command(cls=SectionedCommand, short_help="Measure the seconds that one batch takes.")
@click.option(
    "--num-iters-warmup",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    help="Number of batches to run before measuring.",
)
@click.option(
    "--num-iters",
    type=click.IntRange(1),
    default=30,
    show_default=True,
    help="Number of batches to measure.",
)
@NUM_OUTPUTS
@WITHOUT_TEXT
@OUTPUT_JSON
@click.pass_context
def latency(
    ctx: click.Context,
    /,
    num_iters_warmup: int,
    num_iters: int,
    n: int,
    disable_detokenize: bool,
    output_json: Path | None,
    **_: Any,
) -> None:
    """Complete the same batch of random prompts again and again."""
    workload = Workload(**{name: ctx.params[name] for name in BATCH})
    from minimal_vllm_lab.bench.offline import run_latency

    engine = {"enable_prefix_caching": False, **given_options(ctx, EngineConfig)}
    result = run_latency(
        make_llm(ctx, seed=workload.seed, **engine),
        workload,
        n,
        detokenize=not disable_detokenize,
        num_warmups=num_iters_warmup,
        num_iters=num_iters,
    )
    click.echo(f"Avg latency: {result['avg_latency']} seconds")
    click.echo(f"Std latency: {result['std_latency']} seconds")
    for percentile, seconds in result["percentiles"].items():
        click.echo(f"{percentile}% percentile latency: {seconds} seconds")
    _write(result, output_json)


def _write(result: dict[str, Any], path: Path | None) -> None:
    if path:
        path.write_text(json.dumps(result, indent=4) + "\n", encoding="utf-8")
        click.echo(f"Written to {path}")
