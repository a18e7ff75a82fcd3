"""The kernel that adds a sum over ranks to the residual stream. Here, ranks are processes that
share memory, in which Triton's interpreter runs the kernel."""

import pytest
import torch
from torch import multiprocessing

pytest.importorskip("triton")

from minimal_vllm.engine.ranks.pushed_norms import NormSizes, PushedNorms
from minimal_vllm.model.kernels.pushed_sum import Farewell

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALVES = pytest.mark.gpu  # the interpreter truncates numbers of 16 bits
SIZE, EPS = 48, 1e-5
WHOLE, MOST = 12 * SIZE * 4, 36 * SIZE * 4
"""Bytes of 12 vectors, and of 36."""
TOKENS = [5, 30, 1, 12, 35, 13, 29, 12, 2]
"""Numbers of tokens of sums that follow each other."""


def part(rank, index, num_parts=1, size=SIZE):
    generator = torch.Generator().manual_seed(100 * rank + index)
    return torch.randn(num_parts, TOKENS[index], size, generator=generator).relu()  # zeros, too


def stream(index, size=SIZE):
    return part(77, index, size=size)[0]


def weight(size=SIZE):
    return torch.linspace(0.5, 2, size)


def expected(count, index, num_parts=1):
    """The stream and its norm, computed by plain operations."""
    total = stream(index) + sum(part(rank, index, num_parts).sum(0) for rank in range(count))
    return total, torch.nn.functional.rms_norm(total, (SIZE,), weight(), EPS)


def memories_of(sizes):
    return [torch.zeros(sum(sizes.parts), dtype=torch.uint8) for _ in range(sizes.count)]


def farewell(is_said):
    """A farewell that the kernels have found already, or none."""
    places = Farewell.on(DEVICE).places
    places[0].fill_(is_said)
    return Farewell(places)


def share(count, rank, tokens):
    """The tokens whose stream a rank keeps up, if they are divided."""
    rows = -(-tokens // count)
    return slice(rank * rows, min((rank + 1) * rows, tokens))


def add_all(memories, rank, sizes, num_parts, first_number, results):
    """What a rank's process does: add parts of all sizes, one after the other."""
    torch.set_num_threads(1)
    norms = PushedNorms(memories, rank, sizes, farewell(False))
    norms._notes[0].fill_(first_number)
    found = []
    for index in range(len(TOKENS)):
        parts, residual = part(rank, index, num_parts), stream(index)
        normed = norms.add(parts, residual, weight(), EPS)
        found.append((residual.tolist(), normed.tolist()))
    results.put((rank, found))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernel needs memory of a GPU")
@pytest.mark.parametrize(
    ("count", "num_parts", "first_number"), [(2, 1, 0), (2, 2, 2**31 - 6), (3, 1, 0)]
)
def test_all_ranks_have_the_norm_of_the_stream_with_the_sum(count, num_parts, first_number):
    sizes = NormSizes(count, WHOLE * (count - 1), MOST, programs=4)
    memories = memories_of(sizes)
    for rank, each in enumerate(memories):
        each.share_memory_()
        PushedNorms(memories, rank, sizes, farewell(False))._flags[rank].fill_(first_number)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    ranks = [
        context.Process(
            target=add_all, args=(memories, rank, sizes, num_parts, first_number, results)
        )
        for rank in range(count)
    ]
    for each in ranks:
        each.start()
    found = dict(results.get(timeout=120) for _ in ranks)
    for each in ranks:
        each.join()
    for index, tokens in enumerate(TOKENS):
        total, normed = expected(count, index, num_parts)
        for rank in range(count):
            own = share(count, rank, tokens) if tokens > 12 else slice(None)
            residual, norm = (torch.tensor(each) for each in found[rank][index])
            torch.testing.assert_close(residual[own], total[own])
            torch.testing.assert_close(norm, normed)
            assert found[rank][index][1] == found[0][index][1], "ranks differ in a bit"


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=HALVES)])
@pytest.mark.parametrize("index", [3, 4], ids=["whole", "divided"])
def test_the_last_rank_need_not_wait(index, dtype):
    sizes = NormSizes(2, WHOLE * dtype.itemsize // 4, MOST * dtype.itemsize // 4, programs=4)
    memories = [each.to(DEVICE) for each in memories_of(sizes)]
    parts = [part(rank, index).to(DEVICE, dtype) for rank in range(2)]
    residual, own_weight = (each.to(DEVICE, dtype) for each in (stream(index), weight()))
    total = residual + sum(each.float() for each in parts)[0].to(dtype)
    for rank in range(2):  # nobody waits, so the first has a wrong result
        norms = PushedNorms(memories, rank, sizes, farewell(True))
        found = residual.clone()
        normed = norms.add(parts[rank], found, own_weight, EPS)
    own = share(2, 1, TOKENS[index]) if norms.divides(parts[0], dtype) else slice(None)
    torch.testing.assert_close(found[own], total[own])
    expected = torch.nn.functional.rms_norm(total.float(), (SIZE,), own_weight.float(), EPS)
    torch.testing.assert_close(normed[own], expected[own].to(dtype))


@pytest.mark.gpu
def test_ranks_that_are_streams_of_one_gpu_have_the_norm_of_the_stream_with_the_sum():
    sizes, streams = NormSizes(2, WHOLE, MOST, programs=4), [torch.cuda.Stream() for _ in range(2)]
    for waits in (False, True):  # kernels must have been loaded before one waits for the other
        memories = [each.to(DEVICE) for each in memories_of(sizes)]
        ranks = [PushedNorms(memories, rank, sizes, farewell(not waits)) for rank in range(2)]
        for index, tokens in enumerate(TOKENS):
            parts = [part(rank, index).to(DEVICE) for rank in range(2)]
            own_weight, residuals = weight().to(DEVICE), [stream(index).to(DEVICE) for _ in "12"]
            torch.cuda.synchronize()
            normed = []
            for rank, norms in enumerate(ranks):
                with torch.cuda.stream(streams[rank]):
                    normed.append(norms.add(parts[rank], residuals[rank], own_weight, EPS).clone())
            torch.cuda.synchronize()
            if waits:
                total, expected_norm = expected(2, index)
                assert torch.equal(*normed)
                torch.testing.assert_close(normed[0].cpu(), expected_norm)
                for rank in range(2):
                    own = share(2, rank, tokens) if tokens > 12 else slice(None)
                    torch.testing.assert_close(residuals[rank].cpu()[own], total[own])
