"""``minimal-vllm bench``: how fast a server, or the engine alone, is."""

import asyncio
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from minimal_vllm.cli.errors import Failure
from minimal_vllm.cli.options import SectionedCommand, field_options, given_options
from minimal_vllm.cli.trace import make_llm, trace_options
from minimal_vllm.config import EngineConfig
from minimal_vllm_lab.bench.config import Load, Workload

LISTS = ("--request-rate", "--goodput")
"""Options of ``bench serve`` that take all values up to the next option, as vLLM's do."""

NOT_MEASURED = frozenset(
    {
        "seed",  # the workload's seeds both
        "skip_tokenizer_init",
        "generation_config",
        "chat_template",
        "scheduling_policy",
        "max_logprobs",
        "tensor_parallel_size",
        "trust_remote_code",
    }
)
"""Engine options that would change nothing."""

OTHER_DATASET = {"random": "prefix_repetition", "prefix_repetition": "random"}

SHORT_NAMES = {
    "random_input_len": "input-len",
    "random_output_len": "output-len",
    "random_prefix_len": "prefix-len",
}
"""What vllm bench throughput and latency call these fields."""

BATCH = {"num_prompts": 8, "random_input_len": 32, "random_output_len": 128, "seed": 0}
"""The workload's fields of ``bench latency``, with vLLM's defaults."""

WITHOUT_TEXT = click.option(
    "--disable-detokenize",
    is_flag=True,
    help="Leave out the time that turning tokens to text takes.",
)
NUM_OUTPUTS = click.option(
    "--n", type=click.IntRange(1), default=1, show_default=True, help="Outputs of each prompt."
)
OUTPUT_JSON = click.option(
    "--output-json",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the result to this file.",
)


@click.group(short_help="Measure a server, or the engine alone.")
def bench() -> None:
    """Measure with the options and the result fields of vllm bench."""


class ServeCommand(SectionedCommand):
    """Takes ``--request-rate 1 2 4`` for ``--request-rate 1 --request-rate 2 --request-rate 4``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse."""
        return super().parse_args(ctx, list(_repeat_lists(args)))


def _repeat_lists(args: Sequence[str]) -> Iterator[str]:
    """Put the option before each of its values, from the second on."""
    current, has_value = None, True
    for argument in args:
        if argument.startswith("--"):
            current, has_value = (argument if argument in LISTS else None), False
        elif current and has_value:
            yield current
        else:
            has_value = True
        yield argument


@field_options(Workload, heading="Workload")
@field_options(Load, heading="Load")
@bench.command(cls=ServeCommand, short_help="Put a load on a server with OpenAI's API.")
@click.pass_context
def serve(ctx: click.Context, /, **_: Any) -> None:
    """Send requests to a server with OpenAI's API, and tell how it did.

    Prompts are tokens of common words, if the endpoint is for completions and the server has
    vLLM's /tokenize; else they are as many words. Lengths are told as the server counts them.
    The key is the environment's OPENAI_API_KEY, if it is set.
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
        click.echo(f"Drawn to {load.plot}")


def _workload(ctx: click.Context) -> Workload:
    """What the command line asks for, and nothing that another dataset has."""
    given = given_options(ctx, Workload)
    workload = Workload(**given)
    other = OTHER_DATASET[workload.dataset_name]
    misplaced = {name for name in given if name.startswith(f"{other}_")}
    for option in ctx.command.params:
        if option.name in misplaced:
            raise click.UsageError(f"{option.opts[0]} is for --dataset-name={other}.")
    return workload


def _load(ctx: click.Context) -> Load:
    """What the command line asks for, and nothing that would be without effect."""
    given = given_options(ctx, Load)
    load = Load(**given)
    has_rates = all(map(math.isfinite, load.rates))
    for name, works, needed in (
        ("host", load.base_url is None, "to be without --base-url"),
        ("port", load.base_url is None, "to be without --base-url"),
        ("save_detailed", load.save_result, "--save-result"),
        ("result_dir", load.save_result, "--save-result"),
        ("result_filename", load.save_result, "--save-result"),
        ("result_filename", len(load.rates) == 1, "a single --request-rate: each has its file"),
        ("label", load.save_result, "--save-result"),
        ("burstiness", has_rates, "a --request-rate"),
        ("plot", has_rates, "a --request-rate, or better several"),
    ):
        if name in given and not works:
            raise click.UsageError(f"--{name.replace('_', '-')} needs {needed}.")
    return load


@contextmanager
def _extra(what: str) -> Iterator[None]:
    """Say what to install, if a library is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise Failure(
            f"{what} needs {error.name}, which is not installed: pip install 'minimal-vllm[bench]'"
        ) from error


@trace_options
@field_options(EngineConfig, without=NOT_MEASURED)
@field_options(Workload, heading="Workload", named=SHORT_NAMES)
@bench.command(cls=SectionedCommand, short_help="Complete many prompts: tokens per second.")
@NUM_OUTPUTS
@WITHOUT_TEXT
@OUTPUT_JSON
@click.pass_context
def throughput(
    ctx: click.Context, /, n: int, disable_detokenize: bool, output_json: Path | None, **_: Any
) -> None:
    """Complete prompts of random tokens, as many at once as the engine takes."""
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
@bench.command(cls=SectionedCommand, short_help="Complete one batch: seconds.")
@click.option(
    "--num-iters-warmup",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    help="So many batches come first, unmeasured.",
)
@click.option(
    "--num-iters",
    type=click.IntRange(1),
    default=30,
    show_default=True,
    help="So many are measured.",
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
    """Complete a batch of prompts of random tokens, the same again and again."""
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
