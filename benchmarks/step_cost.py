"""Cost of a step without the model: schedule, batch building and update.

python -m benchmarks.step_cost

All running requests decode, with contexts of about 500 tokens. All other blocks of the pool hold
cached content, so each new block is allocated by eviction. The cost should grow with the number of
requests, not with the pool: compare the columns of a row, then the rows of a column. Neither a
model nor torch is involved. Times are the thread's CPU time, so other work on the machine has
little effect.
"""

import argparse
import time
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.common import RESULTS, print_table, report
from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import EVICTION_STRATEGIES
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.batch import build_batch
from minimal_vllm.step.request import Request

BLOCK_SIZE = 16
CONTEXT = 500
"""Length of the contexts in tokens, approximately."""
PARTS = ("schedule", "build_batch", "update")


@dataclass(frozen=True)
class StepCost:
    """Cost of one step in microseconds: medians over all steps, except for ``mean``."""

    num_requests: int
    num_blocks: int
    schedule: float
    build_batch: float
    update: float
    total: float
    """Median of the whole step."""
    mean: float
    """Mean of the whole step, which rare expensive steps (and other work on the machine)
    increase."""


def make_scheduler(num_requests: int, num_blocks: int, num_steps: int) -> Scheduler:
    """Make a scheduler whose requests all decode, with a pool of which no block is free."""
    pool = BlockPool(num_blocks, EVICTION_STRATEGIES["lru"]())
    config = SchedulerConfig(
        max_model_len=CONTEXT + 2 * BLOCK_SIZE + num_steps,
        max_num_batched_tokens=num_requests * (CONTEXT + BLOCK_SIZE),
        max_num_seqs=num_requests,
        block_size=BLOCK_SIZE,
    )
    scheduler = Scheduler(config, pool)
    _fill_with_cached_content(pool)
    params = SamplingParams(max_tokens=None, ignore_eos=True)
    for index in range(num_requests):
        length = CONTEXT + index % BLOCK_SIZE  # not all requests need a block in the same step
        tokens = array("i", [index] * length)
        scheduler.add(Request(str(index), tokens, length, params, arrival=index))
    plan = scheduler.schedule()
    scheduler.update(plan, [[0]] * num_requests)
    return scheduler


def blocks_needed(num_requests: int, num_steps: int) -> int:
    """Return how many blocks the requests hold in the last step."""
    return num_requests * -(-(CONTEXT + 2 * BLOCK_SIZE + num_steps) // BLOCK_SIZE)


def measure(num_requests: int, num_blocks: int, num_steps: int) -> StepCost:
    """Time ``num_steps`` decode steps of ``num_requests`` requests."""
    scheduler = make_scheduler(num_requests, num_blocks, num_steps)
    sampled = [[1]] * num_requests
    times = [_time_step(scheduler, sampled) for _ in range(num_steps)]
    totals = [1e6 * sum(parts) for parts in times]
    parts = {
        part: 1e6 * median(each) for part, each in zip(PARTS, zip(*times, strict=True), strict=True)
    }
    return StepCost(num_requests, num_blocks, **parts, total=median(totals), mean=fmean(totals))


def _time_step(scheduler: Scheduler, sampled: list[list[int]]) -> tuple[float, float, float]:
    """Return the seconds of each part of one step."""
    begun = time.thread_time()
    plan = scheduler.schedule()
    scheduled = time.thread_time()
    build_batch(plan, BLOCK_SIZE)
    built = time.thread_time()
    scheduler.update(plan, sampled)
    updated = time.thread_time()
    return scheduled - begun, built - scheduled, updated - built


def _fill_with_cached_content(pool: BlockPool) -> None:
    blocks = pool.allocate(pool.num_blocks)
    for block in blocks:
        pool.store(block, block.to_bytes(32, "little"))
    pool.release(blocks)


def print_costs(costs: Sequence[StepCost]) -> None:
    """Print a table of totals and a table of the parts."""
    pools = sorted({cost.num_blocks for cost in costs})
    running = sorted({cost.num_requests for cost in costs})
    totals = {(cost.num_requests, cost.num_blocks): cost.total for cost in costs}
    print_table(
        "µs per step, without the model ('-': the requests don't fit into the pool)",
        ["running requests", *(f"{blocks:,} blocks" for blocks in pools), "µs per request"],
        [
            [
                f"{count:,}",
                *(f"{totals[count, n]:,.0f}" if (count, n) in totals else "-" for n in pools),
                f"{totals[count, pools[-1]] / count:.2f}",
            ]
            for count in running
        ],
    )
    print_table(
        f"Parts of a step, with {pools[-1]:,} blocks",
        ["running requests", *PARTS, "mean of the step"],
        [
            [
                f"{cost.num_requests:,}",
                *(f"{value:,.0f}" for value in (*(getattr(cost, p) for p in PARTS), cost.mean)),
            ]
            for cost in costs
            if cost.num_blocks == pools[-1]
        ],
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; return the results that are written to the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--running", type=int, nargs="+", default=[1, 64, 256, 1024])
    parser.add_argument("--blocks", type=int, nargs="+", default=[10**n for n in range(3, 7)])
    parser.add_argument("--steps", type=int, default=200, help="number of timed steps")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(arguments)

    costs = [
        measure(num_requests, num_blocks, options.steps)
        for num_requests in options.running
        for num_blocks in options.blocks
        if blocks_needed(num_requests, options.steps) <= num_blocks
    ]
    print_costs(costs)
    results = {"steps": options.steps, "costs": [asdict(cost) for cost in costs]}
    report("step_cost", results, options.results)
    return results


if __name__ == "__main__":
    main()
