"""How well the engine chooses how much to guess, in simulated time.

python -m benchmarks.speculation_pace

The engine's schedulers measure what steps cost, and choose from it how many guesses to make. Here
the steps are simulated, so the result is the same in each run, and the share of right guesses is
given. Each number is the time that it took to serve the same requests, relative to no guesses:
below 1 guesses pay, and above 1.03 they cost more than they should.

The GPU is an H200 with Qwen3-8B, and Qwen3-0.6B as its draft model, or a head of the usual shape.
The engine launches steps ahead where it can (see ``virtual_gpu``). On the CPU, a step costs as much
as 20 tokens and one for each token, and a pass of the draft model a third of that, which is about
what the built-in models cost.
"""

import argparse
import json
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import RESULTS, print_table, report
from benchmarks.gpu_eagle import head_shape
from benchmarks.virtual_gpu import Drafting, make_engine
from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import LRU
from minimal_vllm.config import EngineConfig, SchedulerConfig, SpeculativeConfig
from minimal_vllm.engine.parts import make_speculating_scheduler
from minimal_vllm.routing import ROUTERS
from minimal_vllm.speculation.draft_cache import DraftCache
from minimal_vllm.speculation.eagle_cache import EagleCache
from minimal_vllm.speculation.interface import Placeholders
from minimal_vllm_lab.sim.cluster import Cluster
from minimal_vllm_lab.sim.config import Achieved, GuessingConfig, SimulationConfig
from minimal_vllm_lab.sim.cost_model import LinearCostModel
from minimal_vllm_lab.sim.guesses import DraftGuesses, DrawnGuesses
from minimal_vllm_lab.sim.job import Job
from minimal_vllm_lab.sim.metrics import Metrics
from minimal_vllm_lab.sim.presets import PRESETS
from minimal_vllm_lab.sim.replica import Replica
from minimal_vllm_lab.sim.simulation import make_design

NUM_BLOCKS = 20_000
MODEL, DRAFT = "qwen3-8b", "qwen3-0.6b"
FREE_TOKENS = 20
"""Cost of an empty step on the CPU, in tokens."""
DRAFT_SHARE = 1 / 3
"""Cost of a draft model's pass on the CPU, relative to a step."""
MEAN_OUTPUT = 128
"""Mean number of tokens of an output. Prompts have half as many."""


def seconds_on_gpu(
    batch: int, method: str, right: float | None, most: int, per_request: int
) -> float:
    """Return the simulated time on a GPU; see ``seconds_on_cpu``."""
    options: dict[str, Any] = {"method": method, "num_speculative_tokens": most}
    with TemporaryDirectory() as folder:
        if method == "draft_model":
            options["model"] = DRAFT
        elif method == "eagle3":
            options["model"] = folder
            shape = json.dumps(head_shape(PRESETS[MODEL]))
            (Path(folder) / "config.json").write_text(shape, encoding="utf-8")
        speculative = None if right is None else SpeculativeConfig(**options)
        design = make_design(
            SimulationConfig(
                EngineConfig(
                    model=MODEL,
                    num_gpu_blocks_override=NUM_BLOCKS,
                    max_model_len=4096,
                    max_num_seqs=batch,
                    speculative_config=speculative,
                ),
                achieved=Achieved(step_overhead_ms=0.0),  # the virtual GPU has its own
                guessing=GuessingConfig(acceptance_rate=right),
            )
        )
    limits, drafting = design.scheduler_config, None
    if design.draft_costs is not None:
        make_cache = EagleCache if method == "eagle3" else DraftCache
        cache = make_cache(NUM_BLOCKS, limits.block_size, 1, limits.max_num_batched_tokens)
        drafting = Drafting(design.draft_costs, cache)
    engine = make_engine(limits, NUM_BLOCKS, design.cost_model, speculative, right or 0.0, drafting)
    return engine.seconds(
        (job.prompt.tolist(), job.num_output_tokens) for job in _jobs(batch, per_request)
    )


def seconds_on_cpu(
    batch: int, method: str, right: float | None, most: int, per_request: int
) -> float:
    """Return the simulated time to serve some requests on a CPU.

    Args:
        batch: number of requests that fit at once.
        method: who guesses.
        right: share of right guesses; None: no guesses are made.
        most: maximum number of guesses of a request in a step.
        per_request: number of requests to serve, for each that fits.
    """
    replica, metrics = make_on_cpu(batch, method, right, most), Metrics(None)
    Cluster([replica], ROUTERS["round-robin"]([0], 16), metrics).run(_jobs(batch, per_request))
    return metrics.report([replica]).duration


def make_on_cpu(batch: int, method: str, right: float | None, most: int) -> Replica:
    """Return an engine on a simulated CPU; without ``right``, it makes no guesses."""
    limits = SchedulerConfig(max_model_len=4096, max_num_batched_tokens=2048, max_num_seqs=batch)
    pool, costs = BlockPool(NUM_BLOCKS, LRU()), _cpu_costs(1.0)
    if right is None:
        return Replica(limits, pool, costs)
    guesses = DrawnGuesses([right], seed=0)
    if method == "draft_model":
        cache = DraftCache(NUM_BLOCKS, limits.block_size, 1, limits.max_num_batched_tokens)
        guesses = DraftGuesses([right], 0, _cpu_costs(DRAFT_SHARE), cache)
    config = SpeculativeConfig(method=method, num_speculative_tokens=most)
    return Replica(
        limits,
        pool,
        costs,
        (),
        lambda limits, pool, clock: make_speculating_scheduler(
            config, limits, pool, Placeholders(), clock
        ),
        guesses=guesses,
    )


def _cpu_costs(scale: float) -> LinearCostModel:
    token = 1e-3 * scale
    return LinearCostModel(
        per_step=FREE_TOKENS * token,
        per_request=0.0,
        per_token=token,
        per_sample=0.0,
        per_kv_token=0.002 * token,
        per_attended=0.0,
    )


def _jobs(batch: int, per_request: int) -> list[Job]:
    random = Random(0)
    return [
        Job(
            0.0,
            array("i", (random.randrange(4096) for _ in range(random.randint(32, 96)))),
            random.randint(MEAN_OUTPUT // 2, 3 * MEAN_OUTPUT // 2),
        )
        for _ in range(per_request * batch)
    ]


@dataclass(frozen=True)
class Machine:
    """What requests are served on."""

    seconds: Callable[[int, str, float | None, int, int], float]
    """Returns the time to serve some requests; see ``seconds_on_cpu``."""
    methods: Sequence[str]
    """Who guesses there."""


MACHINES = {
    "CPU": Machine(seconds_on_cpu, ("ngram", "draft_model")),
    "GPU": Machine(seconds_on_gpu, ("ngram", "draft_model", "eagle3")),
}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; return the results that are written to the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--machines", nargs="+", choices=MACHINES, default=list(MACHINES))
    parser.add_argument("--right", type=float, nargs="+", default=[0.0, 0.2, 0.4, 0.6, 0.8, 0.95])
    parser.add_argument("--most", type=int, default=4, help="num_speculative_tokens")
    parser.add_argument("--per-request", type=int, default=3, help="requests per place in a batch")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(arguments)

    outcomes = []
    for name in options.machines:
        machine, rows = MACHINES[name], []
        for batch in options.batches:
            sizes = options.most, options.per_request
            plain = machine.seconds(batch, "ngram", None, *sizes)
            for method in machine.methods:
                ratios = [
                    machine.seconds(batch, method, right, *sizes) / plain for right in options.right
                ]
                rows.append([method, str(batch), *(f"{ratio:.2f}" for ratio in ratios)])
                outcomes += [
                    {
                        "machine": name,
                        "method": method,
                        "batch": batch,
                        "right": right,
                        "time": time,
                    }
                    for right, time in zip(options.right, ratios, strict=True)
                ]
        shares = [f"{100 * right:g} %" for right in options.right]
        print_table(
            f"Time on a {name} by the share of right guesses", ["", "requests", *shares], rows
        )
    report("speculation_pace", {"most": options.most, "outcomes": outcomes}, options.results)
    return {"outcomes": outcomes}


if __name__ == "__main__":
    main()
