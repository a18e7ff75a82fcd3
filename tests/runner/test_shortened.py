"""A shortened model launches every kernel that the whole one does, and fewer times."""

from itertools import pairwise

import pytest
import torch
from checkpoints import FAMILIES, write_checkpoint
from torch import Tensor

pytest.importorskip("triton")

from triton.runtime.interpreter import InterpretedFunction

from minimal_vllm.model.triton_modules import TRITON_MODULES
from minimal_vllm.runner.shortened import num_to_see
from minimal_vllm.runner.step import GpuStep
from tests.runner.test_cuda import make_engines

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are interpreted here")


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [("a", 1), ("aaaaaa", 2), ("ababab", 4), ("aaabaaab", 8), ("aabbbb", 4), ("aaabaaabaa", 5)],
)
def test_each_kind_is_seen_behind_each_that_it_follows(kinds, expected):
    assert num_to_see(kinds) == expected
    seen = kinds[:expected]
    assert set(pairwise(seen)) == set(pairwise(kinds))
    assert seen[-1] == kinds[-1]


@pytest.fixture
def launched(monkeypatch):
    """Kernels that were launched, with all that they are compiled for. None of them runs."""
    launches = []

    def note(self, *args, grid, warmup, **options):
        given = [self.fn.__name__, *map(kind_of, args)]
        launches.append((*given, *((name, kind_of(each)) for name, each in options.items())))

    monkeypatch.setattr(InterpretedFunction, "run", note)
    return launches


def kind_of(value):
    if isinstance(value, Tensor):
        return value.dtype
    return tuple(map(kind_of, value)) if isinstance(value, tuple) else value


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "qwen3-moe", "gpt-oss"])
def test_all_kernels_are_launched(tmp_path, launched, family, monkeypatch):
    config = {**FAMILIES[family], "num_hidden_layers": 9}
    _, engine, _ = make_engines(write_checkpoint(tmp_path, config), modules=TRITON_MODULES)
    counts, kinds = [], []
    for shortened in (GpuStep.shortened, lambda whole: whole):
        monkeypatch.setattr(GpuStep, "shortened", shortened)
        launched.clear()
        for step in engine._runner._graphs.steps_to_record():
            torch.inference_mode()(step)()
        counts.append(len(launched))
        kinds.append(set(launched))
    assert kinds[0] == kinds[1]
    assert counts[0] < counts[1]
