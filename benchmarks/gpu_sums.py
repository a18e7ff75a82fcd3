"""Duration of sums over GPUs, by the engine's choice of a kernel and by NCCL alone.

python -m benchmarks.gpu_sums [--gpus 2]

Each sum is repeated in a CUDA graph, without anything between two sums.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import torch

from benchmarks.common import RESULTS, print_table, report
from minimal_vllm.engine.ranks.nccl import NcclRanks
from minimal_vllm.model.deferred import Operand, computed
from minimal_vllm.model.triton_modules import TritonRMSNorm
from minimal_vllm.runner.capture import GraphCapture

SIZES = [8 << 10, 16 << 10, 64 << 10, 512 << 10, 2 << 20, 4 << 20, 8 << 20, 16 << 20, 128 << 20]
"""Bytes of a rank's part. A token of a model with 4,096 channels has 8 KiB."""
SIZE = 4096
"""Numbers of a token."""
CALLS, REPLAYS = 50, 7
"""Sums per graph, so many that its launch does not matter; and replays, of which the median
counts."""


@dataclass(frozen=True)
class Duration:
    """Durations of a sum, in microseconds."""

    num_bytes: int
    engine: float
    nccl: float
    normed: float
    nccl_normed: float


def measure(ranks: NcclRanks, num_bytes: int) -> Duration:
    """Measure the sum of bfloat16 numbers, which all ranks do at the same time."""
    part = torch.zeros(num_bytes // 2 // SIZE, SIZE, dtype=torch.bfloat16, device="cuda")
    norm = TritonRMSNorm("norm", SIZE, 1e-6).to("cuda", torch.bfloat16)
    residual: Operand = torch.zeros_like(part)

    def add_and_normalize() -> None:
        nonlocal residual
        _, residual = norm.forward(ranks.add(part), residual)

    def add_then_normalize() -> None:
        ranks.add_large(part)
        norm.forward(part, torch.zeros_like(part))

    return Duration(
        num_bytes,
        _microseconds(ranks, lambda: computed(ranks.add(part))),
        _microseconds(ranks, lambda: ranks.add_large(part)),
        _microseconds(ranks, add_and_normalize),
        _microseconds(ranks, add_then_normalize),
    )


def _microseconds(ranks: NcclRanks, call: Callable[[], object]) -> float:
    call()

    def repeat() -> None:
        for _ in range(CALLS):
            call()

    graph = GraphCapture().record(repeat)
    times = []
    for _ in range(REPLAYS):
        ranks.least(0)  # they begin together
        begun = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - begun) * 1e6 / CALLS)
    return sorted(times)[len(times) // 2]


def measure_all(folder: Path, index: int, count: int) -> list[Duration]:
    """Measure all sizes as one of some ranks, whose process sees only its own GPU."""
    ranks = NcclRanks(folder, index, count)
    return [measure(ranks, num_bytes) for num_bytes in SIZES]


@click.command()
@click.option("--gpus", default=2, show_default=True, help="Number of GPUs.")
@click.option("--rank", default=0, hidden=True)
@click.option("--meet-in", type=click.Path(path_type=Path), hidden=True)
@click.option(
    "--folder", type=click.Path(path_type=Path), default=RESULTS, help="Folder for the results."
)
def main(gpus: int, rank: int, meet_in: Path | None, folder: Path) -> None:
    """Measure sums over GPUs."""
    if meet_in is not None:
        measure_all(meet_in, rank, gpus)
        return
    with TemporaryDirectory() as meet_in_folder:
        command = [sys.executable, "-m", "benchmarks.gpu_sums", "--gpus", str(gpus)]
        others = [
            subprocess.Popen(
                [*command, "--rank", str(index), "--meet-in", meet_in_folder],
                env=os.environ | {"CUDA_VISIBLE_DEVICES": str(index)},
            )
            for index in range(1, gpus)
        ]
        durations = measure_all(Path(meet_in_folder), 0, gpus)
        for each in others:
            each.wait()
    gpu = torch.cuda.get_device_name()
    print_table(
        f"Microseconds of a sum over {gpus} x {gpu}",
        ["bytes", "our sum", "NCCL's", "our sum and norm", "NCCL's and a norm"],
        [
            [
                f"{each.num_bytes:,}",
                *(
                    f"{microseconds:.1f}"
                    for microseconds in (each.engine, each.nccl, each.normed, each.nccl_normed)
                ),
            ]
            for each in durations
        ],
    )
    report(
        "gpu_sums", {"gpu": gpu, "gpus": gpus, "sums": [asdict(each) for each in durations]}, folder
    )


if __name__ == "__main__":
    main()
