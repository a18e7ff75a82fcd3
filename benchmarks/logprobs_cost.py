"""CPU time that log-probabilities cost in each step, after the GPU has computed them.

python -m benchmarks.logprobs_cost

All requests of a step ask for as many top tokens. The engine takes their log-probabilities in as
numbers, and keeps them until the requests end; dictionaries are made only of those that are read.
Beside it stands what it would cost to make and keep the dictionaries in each step. A server also
sends them to the process that writes them as JSON. No model is involved. Times are means of the
thread's CPU time over all steps, with what the garbage collector takes.
"""

import argparse
import gc
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, print_table, report
from minimal_vllm.device.transfer import Fetch
from minimal_vllm.outputs import FlatLogprobs, TokenLogprobs
from minimal_vllm.sampling.logprobs import AskedLogprobs, QueuedLogprobs

VOCAB_SIZE = 151_936


@dataclass(frozen=True)
class LogprobsCost:
    """Cost of a step in milliseconds."""

    num_requests: int
    wanted: int
    keep_numbers: float
    keep_objects: float
    send_numbers: float
    send_objects: float


def make_step(num_requests: int, wanted: int) -> QueuedLogprobs:
    """Make log-probabilities that have arrived from the GPU."""
    device = torch.device("cpu")
    asked = AskedLogprobs.of([wanted] * num_requests, VOCAB_SIZE, device)
    if asked is None:
        raise ValueError("at least one request is needed")
    found = torch.empty(num_requests, 3, asked.width, dtype=torch.int32)
    random = torch.Generator().manual_seed(0)
    found[:, 0] = torch.randint(VOCAB_SIZE, found[:, 0].shape, generator=random)
    found[:, 1] = torch.rand(found[:, 1].shape, generator=random).log().view(torch.int32)
    found[:, 2] = torch.arange(asked.width)
    return QueuedLogprobs(Fetch(found), asked)


def measure(num_requests: int, wanted: int, num_steps: int) -> LogprobsCost:
    """Time some steps in each way."""
    step = make_step(num_requests, wanted)
    numbers = [FlatLogprobs() for _ in range(num_requests)]
    objects: list[list[TokenLogprobs]] = [[] for _ in range(num_requests)]

    def keep_numbers() -> None:
        for known, position in zip(numbers, step.wait(), strict=True):
            if position is not None:
                known.extend(position)

    def keep_objects() -> None:
        for known, position in zip(objects, step.wait(), strict=True):
            known.extend(position or ())

    positions = step.wait()
    dictionaries = [position and list(position) for position in positions]
    return LogprobsCost(
        num_requests,
        wanted,
        _milliseconds(keep_numbers, num_steps),
        _milliseconds(keep_objects, num_steps),
        _milliseconds(lambda: _send(positions), num_steps),
        _milliseconds(lambda: _send(dictionaries), num_steps),
    )


def _send(content: object) -> None:
    """Write a message as the engine's process does."""
    pickle.dumps(content, pickle.HIGHEST_PROTOCOL)


def _milliseconds(step: Callable[[], None], num_steps: int) -> float:
    gc.collect()
    begun = time.thread_time()
    for _ in range(num_steps):
        step()
    return 1e3 * (time.thread_time() - begun) / num_steps


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; return the results that are written to the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--logprobs", type=int, nargs="+", default=[0, 5, 20])
    parser.add_argument("--steps", type=int, default=300, help="number of timed steps")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(arguments)

    costs = [
        measure(count, wanted, options.steps)
        for count in options.requests
        for wanted in options.logprobs
    ]
    names = ("keep_numbers", "keep_objects", "send_numbers", "send_objects")
    print_table(
        "ms of CPU time per step",
        ["requests", "logprobs", *(name.replace("_", " ") for name in names)],
        [
            [
                f"{cost.num_requests:,}",
                f"{cost.wanted}",
                *(f"{getattr(cost, name):.2f}" for name in names),
            ]
            for cost in costs
        ],
    )
    results = {"steps": options.steps, "costs": [asdict(cost) for cost in costs]}
    report("logprobs_cost", results, options.results)
    return results


if __name__ == "__main__":
    main()
