"""Graphs that are recorded when they are needed, or in idle time, instead of at the start."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

pytest.importorskip("triton")

from minimal_vllm.runner.capture import GraphCapture
from minimal_vllm.runner.graphs import Graphs
from minimal_vllm.runner.idle_work import HasIdleWork
from minimal_vllm.runner.shapes import extremes_first
from tests.runner.test_cuda import GREEDY, PROMPTS, complete, make_engines


def test_sizes_come_from_both_ends():
    assert extremes_first([1, 2, 3, 4, 5]) == [5, 1, 4, 2, 3]
    assert extremes_first([1, 2]) == [2, 1]
    assert extremes_first([]) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are interpreted here")
def test_steps_that_are_not_recorded_yet_give_the_cpus_tokens(checkpoint, monkeypatch):
    recorded = []
    monkeypatch.setattr(Graphs, "record", lambda self, *, progress: self.record_largest())
    expected, got, recorder = make_engines(checkpoint("qwen3"))
    monkeypatch.setattr(
        recorder,
        "record",
        lambda compute: recorded.append(compute) or type(recorder).record(recorder, compute),
    )
    assert isinstance(got._runner, HasIdleWork)
    more = got._runner.idle_work()
    next(more)
    assert len(recorded) == 1
    assert complete(got, PROMPTS[:3], GREEDY) == complete(expected, PROMPTS[:3], GREEDY)
    needed = len(recorded)
    assert needed > 1
    for _ in more:
        pass
    assert len(recorded) > needed
    shapes = [(compute.func.__name__, compute.args) for compute in recorded]
    assert len(set(shapes)) == len(shapes)
    del recorded[:]
    assert complete(got, PROMPTS[3:], GREEDY) == complete(expected, PROMPTS[3:], GREEDY)
    assert not recorded


@pytest.mark.gpu
def test_a_thread_that_has_not_multiplied_yet_can_record_a_product():
    x, y = torch.randn(64, 64, device="cuda"), torch.zeros(64, 64, device="cuda")
    expected = torch.mm(x, x)  # the library's kernels are loaded now
    with ThreadPoolExecutor(1) as thread:
        graph = thread.submit(GraphCapture().record, lambda: torch.mm(x, x, out=y)).result()
    assert not y.any()
    graph.replay()
    assert y.equal(expected)
