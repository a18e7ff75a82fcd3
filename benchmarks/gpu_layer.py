"""Where the time of a decoder layer goes on a GPU, kernel by kernel, in steps of workloads.

python -m benchmarks.gpu_layer [--shape qwen3-8b] [--workload mixed256 --workload ...]
    [--tensor-parallel-size 2] [--quantization fp8] [--kv-cache-dtype fp8]

Weights are random. A workload's step is a decode step of its largest batch; in a workload whose
outputs have one token, it is a step of prompts. A kernel's time is the time that it adds: it may
start while the one before it still runs. A pause is time in which the GPU does nothing. Floors are
those of ``layer_floor``. With several GPUs, rank 0 is profiled, and its sums include the wait for
the others.

Steps are profiled twice: as they are served, and with the kernels of their graphs launched one by
one, which tells each kernel's part of the layer. If the two sequences differ, the output says so.
Both profiles are written to a folder. ``--read`` prints its tables again, on any machine.
"""

import gzip
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.common import RESULTS, print_table
from benchmarks.gpu_workloads import QUANTIZATIONS, KvDtype, build, profiled
from benchmarks.kernel_timing import floor_gpu
from benchmarks.layer_floor import Precision, StepWork, head_floor, layer_floors, work_of
from benchmarks.layer_marks import gpu_runner, launched_one_by_one, mark_runner
from benchmarks.layer_table import (
    LAYER_HEADER,
    STEP_HEADER,
    Facts,
    between_steps,
    layer_tables,
    step_rows,
)
from benchmarks.layer_trace import Event, Kernel, carry_over, is_marked, read_steps
from minimal_vllm.llm import LLM
from minimal_vllm.model.layer_config import LayerConfig
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.plan import Plan
from minimal_vllm_lab.sim.fixed_workloads import FIXED_WORKLOADS, Workload
from minimal_vllm_lab.sim.presets import PRESETS

SERVED, LAUNCHED, FACTS = "served.json.gz", "launched.json.gz", "facts.json"
"""Files of a folder: steps as they are served, steps launched kernel by kernel, and ``Facts``."""
WARM, TIMED, PROFILED, ONE_BY_ONE = 2, 3, 4, 2
"""Numbers of steps: before anything is measured, without the profiler, and of the two profiles. The
first step of a profile doesn't count, since the profiler starts in it."""


# ---- recording, on a GPU ------------------------------------------------------------------------


def mark(llm: LLM) -> list[tuple[bool, StepWork]]:
    """Mark the steps of an engine from now on, and return the list that gets the work of each.

    The list also says whether a step is a decode step.
    """
    works: list[tuple[bool, StepWork]] = []
    block_size = llm.built.model.block_size

    def note(plan: Plan) -> None:
        works.append((plan.is_steady_decode, work_of(plan, block_size)))

    mark_runner(gpu_runner(llm), note)
    return works


def record(
    llm: LLM,
    works: Sequence[tuple[bool, StepWork]],
    requests: Workload,
    title: str,
    folder: Path,
) -> None:
    """Profile steps of a workload, and write the profiles and the facts to a folder.

    Args:
        llm: a marked engine.
        works: list that ``mark`` returned.
        requests: the workload.
        title: what the tables are about.
        folder: folder for the profiles.

    Raises:
        ValueError: the workload has no such steps, or too few.
    """
    _add(llm, requests)
    if any(count > 1 for _, count in requests):
        _run(llm, 1)
        while not works[-1][0]:
            _run(llm, 1)
    _run(llm, WARM)
    begun = time.perf_counter()
    _run(llm, TIMED)
    unprofiled = (time.perf_counter() - begun) / TIMED * 1e6
    folder.mkdir(parents=True, exist_ok=True)
    with profiled(folder / SERVED):
        _run(llm, PROFILED)
    work = works[-(PROFILED // 2)][1]
    with profiled(folder / LAUNCHED), launched_one_by_one(gpu_runner(llm)):
        _run(llm, ONE_BY_ONE)
    facts = make_facts(llm, work, title, unprofiled)
    (folder / FACTS).write_text(json.dumps(asdict(facts), indent=1) + "\n")
    llm.engine.reset()


def _add(llm: LLM, requests: Workload) -> None:
    llm.engine.reset()
    for index, (prompt, count) in enumerate(requests):
        params = SamplingParams(temperature=0.6, max_tokens=count, ignore_eos=True)
        llm.engine.add_request(str(index), prompt, params)


def _run(llm: LLM, num_steps: int) -> None:
    for _ in range(num_steps):
        if not llm.engine.has_unfinished_requests:
            raise ValueError("the workload has too few steps of this kind to be profiled")
        llm.engine.step()


def make_facts(llm: LLM, work: StepWork, title: str, unprofiled: float) -> Facts:
    """Return the facts about steps of this size."""
    model, ranks = llm.built.model, llm.config.tensor_parallel_size
    decoder: Any = model.decoder
    precision = Precision(decoder.dtype.itemsize, model.caches[0].key.element_size(), ranks)
    kinds = [kind_of(layer) for layer in decoder.config.layers]
    sizes = f"{len(work.contexts)} requests, {work.num_tokens:,} tokens"
    return Facts(
        f"{title}: {sizes}; floors of an {floor_gpu().upper()}",
        kinds,
        {kind: layer_floors(decoder, kinds.index(kind), work, precision) for kind in kinds},
        head_floor(decoder, work, precision),
        unprofiled,
    )


def kind_of(layer: LayerConfig) -> str:
    """Return what the layers of a model that take equally long have in common."""
    attention = f"window of {layer.window:,}" if layer.window else "full attention"
    return f"{attention}, experts" if layer.is_sparse else attention


# ---- reading, anywhere --------------------------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """Kernels of some steps, with their layers and parts."""

    facts: Facts
    steps: list[list[Kernel]]
    notes: list[str]


def read_profile(folder: Path) -> Profile:
    """Read the profiles of a folder; see ``layer_trace`` for the errors that are raised."""
    facts = Facts(**json.loads((folder / FACTS).read_text()))
    served = read_steps(_events(folder / SERVED))
    launched = read_steps(_events(folder / LAUNCHED))
    steps, differences = with_parts(served.steps[1:] or served.steps, launched.steps[-1])
    return Profile(facts, steps, [*served.notes, *differences])


def with_parts(
    served: Sequence[Sequence[Kernel]], launched: Sequence[Kernel]
) -> tuple[list[list[Kernel]], list[str]]:
    """Give the kernels of replayed steps their parts, and say how they differ from ``launched``.

    Steps that were not replayed from a graph have their parts already.
    """
    steps: list[list[Kernel]] = []
    notes: list[str] = []
    for step in served:
        if is_marked(step):
            steps.append(list(step))
            continue
        marked, difference = carry_over(launched, step)
        steps.append(marked)
        notes += [difference] if difference else []
    return steps, list(dict.fromkeys(notes))


def _events(path: Path) -> list[Event]:
    with gzip.open(path, "rt") as file:
        events: list[Event] = json.load(file)["traceEvents"]
    return events


def print_profile(profile: Profile) -> None:
    """Print the tables of each kind of layer and of the step, and what is to be known of them."""
    facts, steps = profile.facts, profile.steps
    print(f"\n{facts.title}")
    for note in profile.notes:
        print(f"\nCAUTION: {note}")
    for table in layer_tables(steps, facts):
        print_table(table.title, LAYER_HEADER, table.rows)
        for sentence in table.others:
            print(f"\n{sentence}")
    print_table(f"The step, median of {len(steps)}", STEP_HEADER, step_rows(steps, facts))
    pause = between_steps(steps)
    until_next = "" if pause is None else f" Between two steps, the GPU pauses for {pause:.1f} µs."
    print(f"\nWithout the profiler, such a step takes {facts.unprofiled:.1f} µs.{until_next}")


@click.command()
@click.option("--shape", type=click.Choice(list(PRESETS)), default="qwen3-8b", show_default=True)
@click.option(
    "--workload",
    "workloads",
    type=click.Choice(list(FIXED_WORKLOADS)),
    multiple=True,
    default=["mixed256"],
    show_default=True,
)
@click.option("--quantization", type=click.Choice(list(QUANTIZATIONS)), help="Form of the weights.")
@click.option("--kv-cache-dtype", type=click.Choice(["auto", "fp8"]), default="auto")
@click.option("--tensor-parallel-size", default=1, show_default=True)
@click.option("--read", type=click.Path(path_type=Path), help="Folder of an earlier profile.")
@click.option(
    "--folder", type=click.Path(path_type=Path), default=RESULTS, help="Folder for the results."
)
def main(
    shape: str,
    workloads: tuple[str, ...],
    quantization: str | None,
    kv_cache_dtype: KvDtype,
    tensor_parallel_size: int,
    read: Path | None,
    folder: Path,
) -> None:
    """Profile the layers of one shape in some workloads, or print an earlier profile."""
    if read is not None:
        print_profile(read_profile(read))
        return
    cache = f"{kv_cache_dtype}-cache" if kv_cache_dtype != "auto" else None
    ranks = f"tp{tensor_parallel_size}" if tensor_parallel_size > 1 else None
    raw = dict(PRESETS[shape])
    if quantization:
        raw["quantization_config"] = QUANTIZATIONS[quantization]
    options = {"kv_cache_dtype": kv_cache_dtype, "tensor_parallel_size": tensor_parallel_size}
    llm = build(raw, options)
    works = mark(llm)
    for workload in workloads:
        name = "-".join(filter(None, [shape, workload, quantization, cache, ranks]))
        title = f"{name}, {torch.cuda.get_device_name()}"
        place = folder / f"gpu_layer-{name}"
        record(llm, works, FIXED_WORKLOADS[workload](), title, place)
        print_profile(read_profile(place))
        print(f"\nTo print this again: python -m benchmarks.gpu_layer --read {place}")


if __name__ == "__main__":
    main()
