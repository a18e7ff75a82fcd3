"""The kernel that adds up what ranks write into each other's memory. Here, ranks are processes that
share memory, in which Triton's interpreter runs the kernel."""

import time

import pytest
import torch
from torch import multiprocessing

pytest.importorskip("triton")

from minimal_vllm.engine.ranks.pushed_sums import MAX_TAGGED, PushedSums, memory_bytes
from minimal_vllm.model.kernels.pushed_sum import Farewell

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALVES = pytest.mark.gpu  # the interpreter truncates numbers of 16 bits
SIZES = [5, 4096, 100_001, 7, 50_000, 4096, 16_000]
"""Sizes of sums that follow each other; the slots of one are those of the one after the next."""


def part(rank, index, size):
    generator = torch.Generator().manual_seed(100 * rank + index)
    return torch.randn(size, generator=generator)


def add_all(memories, rank, first_number, results):
    """What a rank's process does: add parts of all sizes, one after the other."""
    torch.set_num_threads(1)
    sums = PushedSums(memories, rank, farewell(False))
    for each in (sums._num_tagged, sums._num_flagged):
        each.fill_(first_number)
    results.put((rank, [add(sums, part(rank, *each)).tolist() for each in enumerate(SIZES)]))


def memories_of(count):
    return [torch.zeros(memory_bytes(count), dtype=torch.uint8) for _ in range(count)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="ranks on GPUs are tested with NCCL's")
@pytest.mark.parametrize(("count", "first_number"), [(2, 0), (3, 2**31 - 3)])
def test_all_ranks_have_the_sum_in_the_order_of_ranks(count, first_number):
    memories = memories_of(count)
    for rank, each in enumerate(memories):
        each.share_memory_()
        sums = PushedSums(memories, rank, farewell(False))
        sums._flags[rank].fill_(first_number)
        sums._words[rank].fill_(first_number << 32)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    ranks = [
        context.Process(target=add_all, args=(memories, rank, first_number, results))
        for rank in range(count)
    ]
    for each in ranks:
        each.start()
    found = dict(results.get(timeout=120) for _ in ranks)
    for each in ranks:
        each.join()
    expected = [
        sum(part(rank, index, size) for rank in range(count)).tolist()
        for index, size in enumerate(SIZES)
    ]
    assert all(found[rank] == expected for rank in range(count))


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=HALVES)])
@pytest.mark.parametrize("size", [5000, MAX_TAGGED + 1], ids=["tagged", "flagged"])
def test_the_last_rank_need_not_wait(size, dtype):
    memories = [each.to(DEVICE) for each in memories_of(2)]
    first, last = (PushedSums(memories, index, farewell(index == 0)) for index in range(2))
    parts = [part(index, 0, size).to(DEVICE, dtype) for index in range(2)]
    expected = (parts[0].float() + parts[1].float()).to(dtype)
    add(first, parts[0])  # of which the result is wrong, because nobody has sent the other part
    assert torch.equal(add(last, parts[1]), expected)


@pytest.mark.parametrize("size", [5000, MAX_TAGGED + 1], ids=["tagged", "flagged"])
def test_parts_of_a_rank_s_tensor_are_added_up_first(size):
    memories = [each.to(DEVICE) for each in memories_of(2)]
    first, last = (PushedSums(memories, index, farewell(index == 0)) for index in range(2))
    parts = [torch.stack([part(2 * i + j, 0, size) for j in range(2)]).to(DEVICE) for i in range(2)]
    first.add(parts[0], torch.float32)
    assert torch.equal(last.add(parts[1], torch.float32), parts[0].sum(0) + parts[1].sum(0))


def add(sums, part):
    return sums.add(part[None], part.dtype)


def farewell(is_said):
    """A farewell that the kernels have found already, or none."""
    places = Farewell.on(DEVICE).places
    places[0].fill_(is_said)
    return Farewell(places)


@pytest.mark.parametrize("size", [100, MAX_TAGGED + 1])
def test_no_sum_waits_after_a_rank_is_gone(size):
    sums = PushedSums([each.to(DEVICE) for each in memories_of(2)], 0, farewell(True))
    for _ in range(3):
        add(sums, torch.ones(size, device=DEVICE))


@pytest.mark.gpu
@pytest.mark.parametrize("size", [100, MAX_TAGGED + 1])
def test_sums_that_wait_for_a_rank_that_is_gone_end(size):
    none_yet = farewell(False)
    sums = PushedSums([each.to(DEVICE) for each in memories_of(2)], 0, none_yet)
    for _ in range(3):
        add(sums, torch.ones(size, device=DEVICE))
    waiting = torch.cuda.Event()
    waiting.record()
    time.sleep(0.1)
    assert not waiting.query()
    none_yet.say()
    torch.cuda.synchronize()
