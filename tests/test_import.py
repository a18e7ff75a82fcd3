"""What ``import minimal_vllm`` does beside giving names."""

import os
import subprocess
import sys

import pytest

import minimal_vllm

PROGRAM = """
import os, sys, minimal_vllm
print(os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")]
)
def test_openmp_gets_its_wait_policy_before_torch_is_imported(given, expected):
    others = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    printed = subprocess.check_output(
        [sys.executable, "-c", PROGRAM], env=others | given, text=True
    )
    assert printed.split() == [expected, "False"]


def test_all_names_are_listed_and_can_be_imported():
    assert set(minimal_vllm.__all__) <= set(dir(minimal_vllm))
    assert all(getattr(minimal_vllm, name) for name in minimal_vllm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'LLMs'"):
        minimal_vllm.LLMs  # noqa: B018


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # so that importing it fails, as where it is not installed
from minimal_vllm import LLM, SamplingParams
llm = LLM(num_gpu_blocks_override=16, max_model_len=64, device="cpu")
print(len(llm.generate("The sea", SamplingParams(max_tokens=3), use_tqdm=False)[0].outputs))
"""


def test_a_cpu_needs_no_triton():
    assert subprocess.check_output([sys.executable, "-c", WITHOUT_TRITON], text=True).strip() == "1"
