"""Accuracy of the simulator, compared with measurements.

python -m benchmarks.sim_accuracy [--measured FILE …]

First on this machine: the engine runs the built-in model on two kinds of traffic, and on other
requests of the same two kinds. Each of the first two runs is simulated twice: with costs fitted to
the steps of other requests of its kind, and with costs fitted to the other kind. The simulator
makes the same steps as the engine (``tests/lab/sim/test_same_as_engine.py``), so only their times
are compared.

Then with files of measurements on GPUs. The cost model uses the datasheet's rates, and the
fractions that the file's engine achieves (``achieved``; default: vLLM's). The fractions in
``measured/`` were chosen without ``mixed256``, ``prefix256``, ``long32`` and Llamas.
``median_ttft_ms`` is compared if a result has it. ``engine`` of a result overrides that of the
file.
"""

import argparse
import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from benchmarks.common import RESULTS, print_table, report
from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import EVICTION_STRATEGIES
from minimal_vllm.config import EngineConfig, SchedulerConfig
from minimal_vllm.routing import RoundRobin
from minimal_vllm.trace.step_record import StepRecord
from minimal_vllm_lab.sim.cluster import Cluster
from minimal_vllm_lab.sim.config import Achieved, FleetConfig, SimulationConfig, TrafficConfig
from minimal_vllm_lab.sim.cost_model import LinearCostModel
from minimal_vllm_lab.sim.fit import fit_cost_model
from minimal_vllm_lab.sim.job import Job
from minimal_vllm_lab.sim.metrics import Metrics
from minimal_vllm_lab.sim.replica import Replica
from minimal_vllm_lab.sim.simulation import make_design, simulate

FOLDER = Path(__file__).parent / "measured"
MEASURED = [
    FOLDER / f"{name}.json" for name in ("vllm_h200", "minimal_vllm_h200", "minimal_vllm_h100")
]
NUM_BLOCKS = 4000
"""Number of KV blocks of the engine on this machine."""

Requests = list[tuple[list[int], int]]
"""List of (prompt token ids, number of output tokens) pairs."""
Outcome = dict[str, Any]


def cpu_workloads(scale: float, seed: int) -> dict[str, Requests]:
    """Make two workloads whose steps differ in kind: mixed lengths, and a shared prefix."""
    random = Random(seed)

    def tokens(count: int) -> list[int]:
        return [random.randrange(4096) for _ in range(count)]

    shared = tokens(400)
    count = max(4, round(48 * scale))
    return {
        "mixed": [(tokens(random.randint(16, 256)), random.randint(16, 256)) for _ in range(count)],
        "prefix": [
            (shared + tokens(random.randint(8, 100)), random.randint(8, 64))
            for _ in range(2 * count)
        ],
    }


def run_engine(requests: Requests, threads: int) -> tuple[SchedulerConfig, list[StepRecord]]:
    """Run the real engine after a warm-up; return its limits and its step records."""
    import torch

    from minimal_vllm import LLM, SamplingParams

    torch.set_num_threads(threads)
    records: list[StepRecord] = []
    llm = LLM(observers=[records.append], device="cpu", num_gpu_blocks_override=NUM_BLOCKS)
    llm.generate({"prompt_token_ids": requests[0][0]}, SamplingParams(max_tokens=4), use_tqdm=False)
    llm.engine.reset()
    records.clear()
    llm.generate(
        [{"prompt_token_ids": prompt} for prompt, _ in requests],
        [SamplingParams(max_tokens=count, ignore_eos=True, seed=0) for _, count in requests],
        use_tqdm=False,
    )
    return llm.built.scheduler_config, records


def run_simulator(
    requests: Requests, config: SchedulerConfig, costs: LinearCostModel
) -> list[StepRecord]:
    """Simulate the same run; return its step records."""
    records: list[StepRecord] = []
    pool = BlockPool(NUM_BLOCKS, EVICTION_STRATEGIES["lru"]())
    replicas = [Replica(config, pool, costs, [records.append])]
    jobs = (Job(0.0, array("i", prompt), count) for prompt, count in requests)
    Cluster(replicas, RoundRobin([0], config.block_size), Metrics(None)).run(jobs)
    return records


def summarize(records: Sequence[StepRecord]) -> dict[str, float]:
    """Return the total time of the steps in seconds, and the median time to first token in ms.

    Time between steps is excluded.
    """
    now = 0.0
    first: dict[str, float] = {}
    for record in records:
        now += record.schedule_seconds + record.run_seconds + record.update_seconds
        for entry in record.scheduled:
            if entry.sampled_tokens:
                first.setdefault(entry.request_id, now)
    return {"seconds": now, "median_ttft_ms": 1000 * median(first.values())}


def compare_on_cpu(scale: float, threads: int) -> list[Outcome]:
    """Simulate two workloads, each with costs fitted to two other runs."""
    workloads = cpu_workloads(scale, seed=0)
    others = {f"other {name}": each for name, each in cpu_workloads(scale, seed=1).items()}
    runs = {name: run_engine(each, threads) for name, each in (workloads | others).items()}
    outcomes = []
    for name, other in (
        ("mixed", "other mixed"),
        ("prefix", "other prefix"),
        ("mixed", "prefix"),
        ("prefix", "mixed"),
    ):
        config, records = runs[name]
        costs = fit_cost_model(runs[other][1])
        simulated = run_simulator(workloads[name], config, costs)
        measured, predicted = summarize(records), summarize(simulated)
        outcomes.append(
            {"workload": name, "costs of": other, "steps": len(records)}
            | {f"measured {key}": value for key, value in measured.items()}
            | {f"simulated {key}": value for key, value in predicted.items()}
        )
    return outcomes


def compare_with_measured(path: Path) -> list[Outcome]:
    """Simulate each result of a file of measurements with the roofline cost model."""
    content = json.loads(path.read_text(encoding="utf-8"))
    outcomes = []
    for result in content["results"]:
        options = content["engine"] | result.get("engine", {})
        engine = EngineConfig(model=result["model"], **options)
        config = SimulationConfig(
            engine,
            FleetConfig(gpu=content["gpu"]),
            Achieved(**content.get("achieved", {})),
            TrafficConfig(workload=result["workload"]),
        )
        found = simulate(make_design(config), config)
        predicted = {"seconds": found.duration, **found.latencies}
        outcomes.append(
            {"model": result["model"], "workload": result["workload"]}
            | {f"measured {key}": result[key] for key in predicted if key in result}
            | {f"simulated {key}": value for key, value in predicted.items() if key in result}
        )
    return outcomes


def add_errors(outcomes: Sequence[Outcome]) -> None:
    """Add the relative error of each simulated value to the outcomes."""
    for outcome in outcomes:
        for name in ("seconds", "median_ttft_ms"):
            if f"measured {name}" in outcome:
                ratio = outcome[f"simulated {name}"] / outcome[f"measured {name}"]
                outcome[f"error of {name}"] = ratio - 1


def show(title: str, outcomes: Sequence[Outcome]) -> None:
    """Print a table, and the median and maximum of the absolute errors."""
    header = list(outcomes[0])
    print_table(title, header, [[_cell(name, each[name]) for name in header] for each in outcomes])
    for name in header:
        if name.startswith("error"):
            errors = [abs(each[name]) for each in outcomes]
            print(f"Absolute {name}: median {median(errors):.1%}, maximum {max(errors):.1%}")


def _cell(name: str, value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    if name.startswith("error"):
        return f"{value:+.1%}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; return the results that are written to the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--measured", type=Path, nargs="*", default=MEASURED)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="relative size of the runs on the CPU"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(arguments)

    tables = {"this CPU": compare_on_cpu(options.scale, options.threads)}
    for path in options.measured:
        tables[path.stem] = compare_with_measured(path)
    for title, outcomes in tables.items():
        add_errors(outcomes)
        show(title, outcomes)
    report("sim_accuracy", tables, options.results)
    return tables


if __name__ == "__main__":
    main()
