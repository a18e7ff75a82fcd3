"""Throughput on a CPU: this engine compared with Hugging Face's ``generate``.

python -m benchmarks.cpu_vs_transformers --model demo
python -m benchmarks.cpu_vs_transformers --model smollm2-135m     # random weights in that shape

Requests of different lengths are completed greedily, ignoring end-of-sequence tokens: by this
engine, by transformers in one padded batch, and by transformers one by one. All use the same
weights and the same number of threads. The contenders take turns in each repeat, so that a ratio
compares runs close in time. Only requested tokens count. All tokens must be the same; differences
are reported.

An additional run of this engine, with layers in separate modules, is split into its parts, beside
the minimum time that the machine's memory and arithmetic would allow.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.common import RESULTS, num_cores, print_table, report
from benchmarks.contenders import Contender, HuggingFace, Job, Ours, load_hugging_face, make_jobs
from benchmarks.floor import MachineRates, attention_floor, measure_rates, weights_floor
from benchmarks.models import SHAPES, model_folder
from benchmarks.stopwatch import Sections, Stopwatch
from minimal_vllm.attention import long_prompt, tiled, tiled_step
from minimal_vllm.model import cpu_modules, linear, packed_linear, scripted_layers
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.runner import plain
from minimal_vllm.trace.step_record import StepRecord

WEIGHTS, GATHER, ARITHMETIC = "products with weights", "attention: gather", "attention: arithmetic"
ATTENTION = (GATHER, ARITHMETIC)


def sections_of(ours: Ours) -> Sections:
    """Return the functions of each part of a step.

    The sampler is patched in the runner, which was given it when it was made.
    """
    return {
        "batch building": [(plain, "build_batches")],
        "attention: plan": [(tiled.TiledAttention, "plan")],
        WEIGHTS: [(linear, "linear"), (packed_linear.PackedProjection, "multiply")],
        "attention: write to cache": [(cpu_modules.TiledSelfAttention, "store")],
        GATHER: [(tiled_step.TiledStep, "_gather"), (long_prompt.LongPrompt, "_gather")],
        ARITHMETIC: [(tiled_step.TiledStep, "__call__")],
        "sampling": [(ours.llm.engine._runner, "sampler")],
        "rest of the model": [(plain.PlainRunner, "launch")],
    }


@dataclass(frozen=True)
class Score:
    """Result of one contender."""

    name: str
    seconds: list[float]
    """Duration of each repeat."""
    tokens_per_second: float
    """Generated tokens per second in the median repeat."""
    speedup_of_ours: list[float]
    """This contender's time divided by ours, in each repeat."""
    num_different: int
    """Number of requests whose tokens differ from ours."""


@dataclass(frozen=True)
class Part:
    """Part of this engine's time, and its minimum."""

    name: str
    seconds: float
    floor: float | None
    """Minimum time in seconds; None if unknown."""


# ---- the comparison -----------------------------------------------------------------------------


def compare(contenders: Sequence[Contender], jobs: Sequence[Job], repeats: int) -> list[Score]:
    """Run the contenders in turn. The first one is this engine."""
    for contender in contenders:  # to warm up
        contender.complete([Job(job.prompt, 2) for job in jobs])
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    tokens: dict[str, list[list[int]]] = {}
    for repeat in range(1, repeats + 1):
        for contender in contenders:
            begun = time.perf_counter()
            tokens[contender.name] = contender.complete(jobs)
            elapsed = time.perf_counter() - begun
            seconds[contender.name].append(elapsed)
            print(f"repeat {repeat}: {contender.name} {elapsed:.2f} s", flush=True)
    num_tokens = sum(job.num_tokens for job in jobs)
    ours = contenders[0].name
    return [
        Score(
            name=name,
            seconds=each,
            tokens_per_second=num_tokens / median(each),
            speedup_of_ours=[theirs / own for theirs, own in zip(each, seconds[ours], strict=True)],
            num_different=sum(
                theirs != own for theirs, own in zip(tokens[name], tokens[ours], strict=True)
            ),
        )
        for name, each in seconds.items()
    ]


def print_scores(scores: Sequence[Score], num_jobs: int) -> None:
    """Print a table with a row for each contender."""
    print_table(
        "Throughput, medians of all repeats",
        ["", "seconds", "tokens/s", "our speedup", "in each repeat", "same tokens"],
        [
            [
                score.name,
                f"{median(score.seconds):.2f}",
                f"{score.tokens_per_second:,.0f}",
                f"{median(score.speedup_of_ours):.2f}x",
                " ".join(f"{speedup:.2f}" for speedup in score.speedup_of_ours),
                f"{num_jobs - score.num_different} of {num_jobs}",
            ]
            for score in scores
        ],
    )


# ---- where our time goes ------------------------------------------------------------------------


def take_apart(ours: Ours, jobs: Sequence[Job], rates: MachineRates) -> list[Part]:
    """Run this engine once more with a stopwatch; return the parts of its time.

    Layers are separate modules in all steps, because one function can't be taken apart.
    """
    stopwatch = Stopwatch()
    sections = sections_of(ours)
    with patch.object(scripted_layers, "FEW_TOKENS", 0), stopwatch.watch(sections):
        ours.complete(jobs)
    steps, config, dtype = ours.steps, ours.llm.built.files.config, ours.llm.built.dtype
    floors = {
        WEIGHTS: weights_floor(steps, config, dtype, rates),
        ATTENTION[-1]: attention_floor(steps, config, dtype, rates),
    }
    seconds = {
        "schedule": sum(step.schedule_seconds for step in steps),
        **{section: stopwatch.seconds[section] for section in sections},
        "update": sum(step.update_seconds for step in steps),
    }
    return [Part(name, each, floors.get(name)) for name, each in seconds.items()]


def print_parts(parts: Sequence[Part], rates: MachineRates) -> None:
    """Print the fractions of this engine's time.

    The floor of attention stands in its last row and includes all of attention.
    """
    total = sum(part.seconds for part in parts)
    print_table(
        f"Where our time goes (floors: {rates.bytes_per_second / 1e9:.1f} GB/s of a copy, "
        f"{rates.flops_per_second / 1e9:.0f} GFLOP/s of a matrix product)",
        ["", "seconds", "share", "floor"],
        [
            [
                part.name,
                f"{part.seconds:.3f}",
                f"{part.seconds / total:.1%}",
                "" if part.floor is None else f"{part.floor:.3f}",
            ]
            for part in parts
        ],
    )


def summarize_steps(steps: Sequence[StepRecord]) -> dict[str, dict[str, float]]:
    """Add up the steps that compute prompts, and the steps that only decode."""
    kinds: dict[str, list[StepRecord]] = {"with prompts": [], "decoding only": []}
    for step in steps:
        decodes = all(entry.num_tokens == 1 for entry in step.scheduled)
        kinds["decoding only" if decodes else "with prompts"].append(step)
    return {
        kind: {
            "steps": len(chosen),
            "tokens": sum(entry.num_tokens for step in chosen for entry in step.scheduled),
            "seconds": sum(
                step.schedule_seconds + step.run_seconds + step.update_seconds for step in chosen
            ),
        }
        for kind, chosen in kinds.items()
    }


def print_steps(kinds: dict[str, dict[str, float]]) -> None:
    """Print a table with a row for each kind of step."""
    print_table(
        "Our steps, with layers in separate modules",
        ["", "steps", "tokens", "seconds", "ms/step"],
        [
            [
                kind,
                f"{each['steps']:,}",
                f"{each['tokens']:,}",
                f"{each['seconds']:.2f}",
                f"{1e3 * each['seconds'] / max(each['steps'], 1):.1f}",
            ]
            for kind, each in kinds.items()
        ],
    )


# ---- the command --------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; return the results that are written to the file."""
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    folder = model_folder(options.model)
    jobs = make_jobs(
        options.num_requests,
        ModelConfig.from_checkpoint(folder).vocab_size,
        tuple(options.prompt_lengths),
        tuple(options.output_lengths),
        options.seed,
        options.spread,
    )
    ours = Ours(folder, options.dtype)
    theirs = load_hugging_face(folder, options.dtype)
    sizes = [options.batch_size or len(jobs), *([] if options.skip_one_by_one else [1])]
    print(
        f"{options.model}: {len(jobs)} requests, {sum(len(job.prompt) for job in jobs):,} prompt "
        f"and {sum(job.num_tokens for job in jobs):,} output tokens, {options.threads} threads"
    )
    scores = compare([ours, *(HuggingFace(theirs, size) for size in sizes)], jobs, options.repeats)
    print_scores(scores, len(jobs))
    rates = measure_rates(getattr(torch, options.dtype))
    parts = take_apart(ours, jobs, rates)
    steps = summarize_steps(ours.steps)
    print_steps(steps)
    print_parts(parts, rates)
    results = {
        "options": {key: str(value) for key, value in vars(options).items()},
        "scores": [asdict(score) for score in scores],
        "rates": asdict(rates),
        "steps": steps,
        "parts": [asdict(part) for part in parts],
    }
    report(f"cpu_vs_transformers_{Path(options.model).name}", results, options.results)
    return results


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--model", default="demo", help=f"demo, {', '.join(SHAPES)}, or a checkpoint's folder"
    )
    parser.add_argument("--num-requests", type=int, default=64)
    lengths: dict[str, Any] = {"type": int, "nargs": 2, "default": [16, 256]}
    parser.add_argument("--prompt-lengths", metavar=("MIN", "MAX"), **lengths)
    parser.add_argument("--output-lengths", metavar=("MIN", "MAX"), **lengths)
    parser.add_argument(
        "--spread",
        default="uniform",
        choices=["uniform", "log-uniform"],
        help="distribution of lengths; log-uniform: mostly short, some long, as in chats",
    )
    parser.add_argument("--batch-size", type=int, help="for transformers [default: all requests]")
    parser.add_argument("--skip-one-by-one", action="store_true", help="skip the slowest contender")
    parser.add_argument("--threads", type=int, default=num_cores())
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
