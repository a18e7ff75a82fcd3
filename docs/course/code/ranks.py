"""What each of several ranks reads and sends, and an MLP that two processes compute."""

from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from minimal_vllm.engine.ranks.group import GlooRanks
from minimal_vllm.model.divided_config import divide
from minimal_vllm.model.weight_bytes import weight_bytes
from minimal_vllm_lab.sim.presets import read_model_shape

COPY_RATE = 4.3e12
"""Bytes per second that an H200 copies."""
SECONDS_PER_SUM = 10e-6
"""Time of a small sum over GPUs of one host: an assumption, not a measurement."""
TOKENS, HIDDEN, INNER = 4, 64, 256


def main() -> None:
    show_what_a_rank_reads()
    show_an_mlp()


def show_what_a_rank_reads() -> None:
    """Divide a model, and predict a step of one token from what each rank reads and sends."""
    model = read_model_shape("qwen3-8b", None, None)
    print("1. A step of one token, Qwen3-8B in bfloat16")
    print("   ranks   GB per rank   KV bytes per token   ms reading   sums   ms summing   ms")
    for ranks in (1, 2, 4, 8, 16):
        part = divide(model, ranks)
        size = weight_bytes(part, "bfloat16")
        reading = size / COPY_RATE * 1e3
        sums = 2 * part.num_layers + 1 if ranks > 1 else 0
        summing = sums * SECONDS_PER_SUM * 1e3
        print(
            f"   {ranks:5}   {size / 1e9:11.2f}   {part.kv_bytes_per_token('bfloat16'):18,}"
            f"   {reading:10.2f}   {sums:4}   {summing:10.2f}   {reading + summing:.2f}"
        )


def show_an_mlp() -> None:
    """Compute an MLP in two processes, in three ways, and compare with one process."""
    with TemporaryDirectory() as folder, get_context("spawn").Pool(2) as pool:
        rows, *_ = pool.starmap(compute, [(folder, rank) for rank in range(2)])
    print(f"\n2. An MLP of {HIDDEN}, {INNER} and {HIDDEN} channels in two processes")
    print("   first divided by   then by   exchanges   numbers sent per token   largest error")
    for first, then, exchanges, numbers, error in rows:
        rounded = "rounding" if error < 1e-4 else f"{error:.2f}"
        print(f"   {first:16}   {then:7}   {exchanges:9}   {numbers:22}   {rounded:>13}")


def compute(folder: str, rank: int) -> list[tuple[str, str, int, int, float]]:
    """Compute a rank's parts, and return how each way went."""
    ranks = GlooRanks(Path(folder), rank, 2)
    torch.manual_seed(0)
    x = torch.randn(TOKENS, HIDDEN)
    up, down = torch.randn(INNER, HIDDEN) / 8, torch.randn(HIDDEN, INNER) / 16
    expected = torch.relu(x @ up.T) @ down.T

    def own(weight: torch.Tensor, dim: int) -> torch.Tensor:
        return weight.chunk(2, dim)[rank]

    def error(result: torch.Tensor) -> float:
        return float((result - expected).abs().max())

    # Some of the outputs, then the sums over the inputs that these are.
    some = torch.relu(x @ own(up, 0).T)
    summed = ranks.add(some @ own(down, 1).T)
    # Some of the outputs, then again: each product needs all of its inputs.
    every = ranks.concatenate(torch.relu(x @ own(up, 0).T))
    gathered = ranks.concatenate(every @ own(down, 0).T)
    # Parts of sums, then an activation: of parts, it is not that of the sum.
    parts = torch.relu(own(x, 1) @ own(up, 1).T)
    wrong = ranks.add(parts @ down.T)
    return [
        ("outputs", "inputs", 1, HIDDEN, error(summed)),
        ("outputs", "outputs", 2, INNER // 2 + HIDDEN // 2, error(gathered)),
        ("inputs", "-", 1, HIDDEN, error(wrong)),
    ]


if __name__ == "__main__":
    main()
