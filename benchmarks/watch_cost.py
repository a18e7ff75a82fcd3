"""Cost of observing an engine, and of being observable.

python -m benchmarks.watch_cost

The engine steps without its model: a stub runner gives each request a token at once, so that only
the engine's own work is measured. All variants step in turn with the same requests, so that a ratio
compares steps close in time. Times are the thread's CPU time.

The first variant has no calls to observers at all. The second has the calls but no observers, as an
engine usually runs.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from benchmarks.common import RESULTS, print_table, report
from minimal_vllm import LLM, SamplingParams
from minimal_vllm.engine.reporter import Reporter, Timing
from minimal_vllm.outputs import OutputKind
from minimal_vllm.runner.interface import StepResult
from minimal_vllm.runner.plain import Landed
from minimal_vllm.sampling.sampler import Sampled
from minimal_vllm.step.plan import Plan
from minimal_vllm.trace.facts import engine_facts
from minimal_vllm.trace.step_record import Observer
from minimal_vllm.trace.writer import TraceWriter
from minimal_vllm_lab.view.live import LiveView

if TYPE_CHECKING:
    from minimal_vllm.server.async_engine import AsyncEngine

PROMPT = [1] * 200
"""Token ids of each prompt."""
TRACE_BYTES = 1 << 30
"""Size limit of the trace."""


class NoModel:
    """Runner that computes nothing."""

    def launch(self, plan: Plan) -> Landed:
        """Return a token for each request that samples."""
        count = len(plan.sampling)
        return Landed(StepResult(Sampled.one_each([1] * count), []))


class NoReporter:
    """Stand-in for ``Reporter`` that does nothing."""

    def note_arrived(self, requests: object) -> None:
        """Do nothing."""

    def begin(self) -> Timing:
        """Return times that are never set."""
        return Timing()

    def planned(self, plan: Plan, times: Timing) -> None:
        """Do nothing."""

    def mark(self, times: Timing) -> None:
        """Do nothing."""

    def end(self, plan: Plan, requests: object, times: Timing) -> None:
        """Do nothing."""


def make_engine(num_requests: int, observers: Sequence[Observer]) -> LLM:
    """Make the built-in model's engine with a stub runner.

    Args:
        num_requests: Number of requests that it has room for.
        observers: Called with its records.
    """
    llm = LLM(
        device="cpu",
        num_gpu_blocks_override=40 * num_requests,
        max_num_seqs=num_requests,
        max_num_batched_tokens=num_requests * len(PROMPT),
        observers=observers,
    )
    llm.engine._runner = NoModel()
    return llm


def start(llm: LLM, num_requests: int) -> Callable[[], object]:
    """Add all requests and compute their prompts; return the function that makes a step."""
    params = SamplingParams(max_tokens=None, ignore_eos=True, detokenize=False)
    for index in range(num_requests):
        llm.engine.add_request(str(index), PROMPT, params, output_kind=OutputKind.DELTA)
    llm.engine.step()
    return llm.engine.step


def variants(num_requests: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Return a function that makes a step for each variant, which differ in their observers."""
    unobservable = make_engine(num_requests, [])
    unobservable.engine._reporter = cast("Reporter", NoReporter())
    unobserved = make_engine(num_requests, [])
    records: list[object] = []
    listed = make_engine(num_requests, [records.append])
    view = LiveView()
    viewed = make_engine(num_requests, [view])
    view.attach(viewed, cast("AsyncEngine", None))  # only used for a viewer's questions
    writer = TraceWriter(folder / "trace.jsonl", TRACE_BYTES)
    traced = make_engine(num_requests, [writer])
    writer.begin(engine_facts(traced.config, traced.built), None)
    engines = {
        "no calls to observers": unobservable,
        "no observers": unobserved,
        "a list of records": listed,
        "the view, no page open": viewed,
        "a trace file": traced,
    }
    return {name: start(llm, num_requests) for name, llm in engines.items()}


def measure(num_requests: int, num_steps: int) -> dict[str, list[float]]:
    """Return the microseconds of each step of each variant."""
    times: dict[str, list[float]] = {}
    with TemporaryDirectory() as folder:
        steps = list(variants(num_requests, Path(folder)).items())
        for index in range(num_steps):
            # Rotate the order: a variant's speed depends on what is in the CPU's cache before it.
            first = index % len(steps)
            for name, step in steps[first:] + steps[:first]:
                begun = time.thread_time()
                step()
                times.setdefault(name, []).append(1e6 * (time.thread_time() - begun))
    return times


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; return the results that are written to the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--running", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--steps", type=int, default=300, help="number of timed steps")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(arguments)
    medians: dict[str, dict[str, float]] = {}
    for num_requests in options.running:
        times = measure(num_requests, options.steps)
        for name, each in times.items():
            medians.setdefault(name, {})[str(num_requests)] = median(each)
    first = next(iter(medians.values()))
    print_table(
        "µs per step without the model, and the ratio to the first row",
        ["", *(f"{count} requests" for count in options.running)],
        [
            [name, *(f"{each[key]:,.0f} ({each[key] / first[key]:.2f})" for key in first)]
            for name, each in medians.items()
        ],
    )
    results = {"steps": options.steps, "microseconds": medians}
    report("watch_cost", results, options.results)
    return results


if __name__ == "__main__":
    main()
