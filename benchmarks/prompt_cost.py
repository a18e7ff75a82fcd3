"""CPU time that prompts cost before the GPU can compute them.

python -m benchmarks.prompt_cost

All prompts arrive at once, as lists of token ids. They are admitted (checked and copied), then
planned in one step (hashed, looked up in the prefix cache, given blocks), and laid out as arrays. A
share of their tokens is the same in all prompts. No model is involved. Times are the thread's CPU
time. Each part's time is its shortest in several runs, each with an empty prefix cache.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.common import RESULTS, print_table, report
from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import LRU
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.admission import Admission, ModelLimits
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.batch import build_batch

BLOCK_SIZE = 16
VOCAB_SIZE = 151_936
PARTS = ("admit", "plan", "lay_out")


@dataclass(frozen=True)
class PromptCost:
    """Cost of all prompts in milliseconds: the shortest of all runs."""

    num_shared: int
    """Number of tokens that all prompts begin with."""
    num_own: int
    """Number of tokens of each prompt after that."""
    admit: float
    plan: float
    lay_out: float


def make_prompts(count: int, num_shared: int, num_own: int) -> list[list[int]]:
    """Make prompts of random tokens, of which the first ``num_shared`` are the same in all."""
    random = Random(0)
    shared = random.choices(range(VOCAB_SIZE), k=num_shared)
    return [shared + random.choices(range(VOCAB_SIZE), k=num_own) for _ in range(count)]


def run_once(prompts: Sequence[list[int]]) -> tuple[float, float, float]:
    """Return the milliseconds of each part for one step that computes all prompts."""
    length = len(prompts[0])
    num_blocks = len(prompts) * (length // BLOCK_SIZE + 2)
    config = SchedulerConfig(
        max_model_len=length + BLOCK_SIZE,
        max_num_batched_tokens=len(prompts) * length,
        max_num_seqs=len(prompts),
        block_size=BLOCK_SIZE,
    )
    scheduler = Scheduler(config, BlockPool(num_blocks, LRU()))
    admission = Admission(ModelLimits(VOCAB_SIZE, frozenset(), max_logprobs=20), None, seed=0)
    params = SamplingParams(max_tokens=8)
    begun = time.thread_time()
    for index, prompt in enumerate(prompts):
        for request in admission.make_requests(str(index), prompt, params):
            scheduler.add(request)
    admitted = time.thread_time()
    plan = scheduler.schedule()
    planned = time.thread_time()
    build_batch(plan, BLOCK_SIZE)
    laid_out = time.thread_time()
    return 1e3 * (admitted - begun), 1e3 * (planned - admitted), 1e3 * (laid_out - planned)


def measure(count: int, num_shared: int, num_own: int, num_runs: int) -> PromptCost:
    """Time the same prompts several times."""
    prompts = make_prompts(count, num_shared, num_own)
    runs = [run_once(prompts) for _ in range(num_runs)]
    return PromptCost(num_shared, num_own, *map(min, zip(*runs, strict=True)))


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; return the results that are written to the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=256, help="number of prompts")
    parser.add_argument("--runs", type=int, default=11, help="number of timed runs")
    parser.add_argument("--shared", type=int, default=2048, help="tokens that prompts may share")
    parser.add_argument("--own", type=int, default=64, help="tokens after these")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(arguments)

    total = options.shared + options.own
    lengths = [(options.shared, options.own), (0, total), (0, options.own)]
    costs = [measure(options.prompts, *each, options.runs) for each in lengths]
    print_table(
        f"ms of CPU time for {options.prompts} prompts",
        ["shared tokens", "own tokens", *PARTS, "µs per prompt"],
        [
            [
                f"{cost.num_shared:,}",
                f"{cost.num_own:,}",
                *(f"{getattr(cost, part):.1f}" for part in PARTS),
                f"{1e3 * sum(getattr(cost, part) for part in PARTS) / options.prompts:.0f}",
            ]
            for cost in costs
        ],
    )
    results = {"prompts": options.prompts, "costs": [asdict(cost) for cost in costs]}
    report("prompt_cost", results, options.results)
    return results


if __name__ == "__main__":
    main()
