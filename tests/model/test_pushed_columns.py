"""The kernel that puts columns of ranks side by side. Here, ranks are processes that share memory,
in which Triton's interpreter runs the kernel."""

import pytest
import torch
from torch import multiprocessing

pytest.importorskip("triton")

from minimal_vllm.model.kernels.pushed_columns import pushed_columns
from minimal_vllm.model.kernels.pushed_sum import Farewell

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PROGRAMS = 3
SHAPES = [(1, 70, 140), (5, 4100, 8200), (2, 33, 60), (4, 10, 20)]
"""Rows, columns of a rank, and of the result, of exchanges that follow each other."""


def columns(rank, index):
    rows, size, _ = SHAPES[index]
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(10 * rank + index))


def exchange_all(slots, flags, rank, count, results):
    """What a rank's process does."""
    torch.set_num_threads(1)
    exchanges, found = torch.zeros(PROGRAMS, dtype=torch.int32), []
    farewell = Farewell.on(DEVICE)
    for index, (rows, size, width) in enumerate(SHAPES):
        out = torch.zeros(rows, width + size * (count - 2))
        pushed_columns(columns(rank, index), out, slots, flags, exchanges, farewell, rank)
        found.append(out.tolist())
    results.put((rank, found))


@pytest.mark.skipif(torch.cuda.is_available(), reason="ranks on GPUs are tested with NCCL's")
@pytest.mark.parametrize("count", [2, 3])
def test_all_ranks_have_all_columns(count):
    slots = tuple(torch.zeros((count - 1) * 21_000).share_memory_() for _ in range(count))
    flags = tuple(
        torch.zeros(count * PROGRAMS, dtype=torch.int32).share_memory_() for _ in range(count)
    )
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    ranks = [
        context.Process(target=exchange_all, args=(slots, flags, rank, count, results))
        for rank in range(count)
    ]
    for each in ranks:
        each.start()
    found = dict(results.get(timeout=120) for _ in ranks)
    for each in ranks:
        each.join()
    for index, (_, size, width) in enumerate(SHAPES):
        whole = torch.cat([columns(rank, index) for rank in range(count)], dim=1)
        expected = whole[:, : width + size * (count - 2)].tolist()
        assert all(found[rank][index] == expected for rank in range(count))


def test_the_last_rank_need_not_wait():
    slots = tuple(torch.zeros(80, device=DEVICE) for _ in range(2))
    flags = tuple(torch.zeros(2 * PROGRAMS, dtype=torch.int32, device=DEVICE) for _ in "12")
    farewell = Farewell.on(DEVICE)
    farewell.places[0].fill_(1)
    for rank in range(2):  # nobody waits, so the first has a wrong result
        out = torch.zeros(1, 140, device=DEVICE)
        exchanges = torch.zeros(PROGRAMS, dtype=torch.int32, device=DEVICE)
        pushed_columns(columns(rank, 0).to(DEVICE), out, slots, flags, exchanges, farewell, rank)
    assert torch.equal(out.cpu(), torch.cat([columns(0, 0), columns(1, 0)], dim=1))
