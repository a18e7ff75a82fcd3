"""Throughput on a GPU: this engine, transformers and, if installed, vLLM.

python -m benchmarks.gpu_engines [--model qwen3-0.6b] [--workload mixed256] [--num-requests 16]

All engines load the same checkpoint of random weights in bfloat16, and complete the first requests
of a workload greedily. They run one after the other on one GPU, each in its own process. An engine
that fails or takes too long is left out and named. Before it is measured, each engine completes the
same prompts with a few tokens.

The floor is that of ``gpu_workloads``, without a prefix cache. In bfloat16 the two largest logits
are sometimes equal up to rounding, so tokens are compared up to each request's first difference.
"""

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from traceback import format_exc

import click
import torch
from matplotlib.figure import Figure

from benchmarks.common import RESULTS, print_table, report
from benchmarks.contenders import Job
from benchmarks.gpu_contenders import ENGINES, installed
from benchmarks.gpu_workloads import floor_seconds, this_gpu
from benchmarks.models import write_random_model
from minimal_vllm_lab.sim.fixed_workloads import FIXED_WORKLOADS
from minimal_vllm_lab.sim.presets import PRESETS

WARM_UP_TOKENS = 8
"""Number of output tokens per request in the warm-up."""


@dataclass(frozen=True)
class Run:
    """Result of one engine."""

    seconds: list[float]
    """Duration of each repeat."""
    ready: float
    """Time in seconds to load the checkpoint and warm up."""
    tokens: list[list[int]]
    """Output tokens of each job."""


@dataclass(frozen=True)
class Score:
    """Result of one engine, compared with ours."""

    engine: str
    seconds: list[float]
    """Duration of each repeat."""
    ready: float
    """Time in seconds to load the checkpoint and warm up."""
    tokens_per_second: float
    ours_is_faster_by: float
    """Median duration divided by ours."""
    same_tokens: float
    """Fraction of tokens before each request's first difference from ours."""


# ---- one engine, in a process of its own ---------------------------------------------------------


def run_engine(
    engine: str, folder: Path, device: str, jobs: Sequence[Job], repeats: int, patience: float
) -> Run:
    """Complete the jobs with one engine, in a process that is killed afterwards with its children.

    Raises:
        RuntimeError: If the engine failed or took more than ``patience`` seconds; the message
            says which.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, engine, folder, device, jobs, repeats))
    process.start()
    sender.close()
    try:
        if not receiver.poll(patience):
            raise RuntimeError(f"no result within {patience:.0f} s")
        result = receiver.recv()
    except EOFError as error:
        raise RuntimeError("its process ended without a result") from error
    finally:
        _end(process)
    if isinstance(result, str):
        raise RuntimeError(result)
    return result  # type: ignore[no-any-return] # what _work sends


def _end(process: SpawnProcess) -> None:
    assert process.pid is not None  # it was started
    with suppress(ProcessLookupError):  # the process may not have its own group yet
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _work(
    sender: Connection, engine: str, folder: Path, device: str, jobs: Sequence[Job], repeats: int
) -> None:
    os.setpgid(0, 0)  # a process group, so that the engine's children can be killed with it
    try:
        begun = time.perf_counter()
        complete = ENGINES[engine](folder, device, jobs)
        complete([replace(job, num_tokens=min(job.num_tokens, WARM_UP_TOKENS)) for job in jobs])
        ready = time.perf_counter() - begun
        seconds, tokens = [], []
        for _ in range(repeats):
            begun = time.perf_counter()
            tokens = complete(jobs)
            seconds.append(time.perf_counter() - begun)
        if [len(each) for each in tokens] != [job.num_tokens for job in jobs]:
            raise RuntimeError("a request ended early")
        sender.send(Run(seconds, ready, tokens))
    except Exception:
        sender.send(format_exc())


# ---- all of them ---------------------------------------------------------------------------------


def compare(runs: dict[str, Run], jobs: Sequence[Job]) -> list[Score]:
    """Compare the runs with the first one, which is this engine's."""
    first = next(iter(runs.values()))
    num_tokens = sum(job.num_tokens for job in jobs)
    return [
        Score(
            name,
            run.seconds,
            run.ready,
            num_tokens / median(run.seconds),
            median(run.seconds) / median(first.seconds),
            sum(map(_common_length, run.tokens, first.tokens)) / num_tokens,
        )
        for name, run in runs.items()
    ]


def _common_length(tokens: Sequence[int], others: Sequence[int]) -> int:
    same = [token == other for token, other in zip(tokens, others, strict=True)]
    return same.index(False) if False in same else len(same)


def print_scores(title: str, scores: Sequence[Score], floor: float | None) -> None:
    """Print a table with a row for each engine."""
    print_table(
        title,
        ["", "ready", "seconds", "tokens/s", "our speedup", "floor / theirs", "same tokens"],
        [
            [
                score.engine,
                f"{score.ready:.1f}",
                f"{median(score.seconds):.2f}",
                f"{score.tokens_per_second:,.0f}",
                f"{score.ours_is_faster_by:.2f}x",
                f"{floor / median(score.seconds):.2f}" if floor else "",
                f"{score.same_tokens:.0%}",
            ]
            for score in scores
        ],
    )


def plot(title: str, scores: Sequence[Score], path: Path) -> None:
    """Plot a bar for each engine."""
    figure = Figure(figsize=(8, 1.2 + 0.5 * len(scores)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([each.engine for each in scores], [each.tokens_per_second for each in scores])
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(title=title, xlabel="output tokens per second")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


@click.command()
@click.option("--model", type=click.Choice(list(PRESETS)), default="qwen3-0.6b", show_default=True)
@click.option("--workload", type=click.Choice(list(FIXED_WORKLOADS)), default="mixed256",
              show_default=True)  # fmt: skip
@click.option(
    "--num-requests",
    type=click.IntRange(1),
    help="Number of requests, from the first.  [default: all]",
)
@click.option("--repeats", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--patience", default=300.0, show_default=True, help="Time limit per engine in seconds."
)
@click.option("--folder", type=click.Path(path_type=Path), default=RESULTS,
              help="Folder for the results and the plot.")  # fmt: skip
def main(
    model: str,
    workload: str,
    num_requests: int | None,
    repeats: int,
    patience: float,
    folder: Path,
) -> None:
    """Compare engines on one GPU."""
    if not torch.cuda.is_available():
        raise click.UsageError(
            "there is no GPU; on a CPU: python -m benchmarks.cpu_vs_transformers"
        )
    requests = FIXED_WORKLOADS[workload]()[:num_requests]
    jobs = [Job(prompt, num_tokens) for prompt, num_tokens in requests]
    runs, left_out = {}, {}
    with TemporaryDirectory() as checkpoint:
        write_random_model(Path(checkpoint), PRESETS[model], torch.bfloat16, device="cuda")
        for name in installed():
            try:
                runs[name] = run_engine(name, Path(checkpoint), "cuda", jobs, repeats, patience)
                print(f"{name}: {median(runs[name].seconds):.2f} s", flush=True)
            except RuntimeError as error:
                left_out[name] = str(error)
                print(f"{name} is left out: {error}", flush=True)
            if not runs:
                raise click.ClickException("our own run failed, so there is nothing to compare")
    scores = compare(runs, jobs)
    gpu = torch.cuda.get_device_name()
    title = f"{model}, {len(jobs)} requests of {workload}, {gpu}"
    floor = floor_seconds(model, requests, this_gpu(), enable_prefix_caching=False)
    print_scores(title, scores, floor)
    stem = f"gpu_engines-{model}-{workload}"
    results = {"model": model, "workload": workload, "num_requests": len(jobs), "gpu": gpu}
    results |= {"floor": floor, "scores": [asdict(score) for score in scores], "left_out": left_out}
    report(stem, results, folder)
    plot(title, scores, folder / f"{stem}.svg")


if __name__ == "__main__":
    main()
