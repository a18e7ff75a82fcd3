"""What was not invented here says where it comes from: a paper with its year, or an address."""

import ast
import re
from typing import get_args

import pytest

from benchmarks.shape import PACKAGE, kernels
from minimal_vllm.model.rope_config import RopeScaling
from minimal_vllm.sampling import filters

YEAR_OR_ADDRESS = re.compile(r"\b(?:19|20)\d\d\b|https://")

OWN = {
    "runner/kernels/rows.py",  # how this engine keeps its table
    "sampling/kernels/sample.py",  # says that it repeats sampling/sampler.py and draw.py
    "sampling/kernels/weights.py",  # the same
}
KERNELS = [file for file in kernels() if not file.endswith("__init__.py") and file not in OWN]
IDEAS = [
    "attention/online_softmax.py",
    "cache/block_pool.py",  # paging
    "cache/eviction.py",
    "cache/prefix_hash.py",
    "engine/engine.py",  # asynchronous scheduling
    "runner/capture.py",  # CUDA graphs
    "engine/scheduler.py",  # continuous batching, chunked prefill, preemption
    "step/shared_prefix.py",
    "model/layers.py",
    "model/rope.py",
    "sampling/draw.py",
    "sampling/logit_rules.py",  # penalties
    "../minimal_vllm_lab/sim/cost_model.py",
    "../minimal_vllm_lab/stats/slo.py",
]


def docstrings(file):
    """All docstrings of a module as one text."""
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    return "\n".join(
        ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)
    )


@pytest.mark.parametrize("file", [*KERNELS, *IDEAS])
def test_a_kernel_or_idea_names_its_source(file):
    assert YEAR_OR_ADDRESS.search(docstrings(file))


@pytest.mark.parametrize("name", [name for name in vars(filters) if name.startswith("keep_")])
def test_a_filter_of_the_sampler_names_its_source(name):
    assert YEAR_OR_ADDRESS.search(getattr(filters, name).__doc__)


@pytest.mark.parametrize("scaling", get_args(RopeScaling))
def test_a_way_to_stretch_the_context_names_its_source(scaling):
    assert YEAR_OR_ADDRESS.search(scaling.__doc__)


def test_all_that_is_said_to_be_our_own_is_there():
    assert OWN - set(kernels()) == set()
