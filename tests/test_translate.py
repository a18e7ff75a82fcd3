"""Kernels can be compiled: what Triton's interpreter accepts, its compiler may refuse."""

import os
import subprocess
import sys

import pytest

from tests.markdown import ROOT

pytest.importorskip("triton")

TESTS = [
    "tests/attention/test_kernels.py",
    "tests/model/test_experts.py",
    "tests/model/test_pushed_columns.py",
    "tests/model/test_pushed_norm.py",
    "tests/model/test_pushed_sum.py",
    "tests/model/test_triton_modules.py",
    "tests/model/test_triton_weights.py",
    "tests/sampling/test_logprob_kernels.py",
    "tests/speculation/test_cuda.py",
]
SOME = (
    "softcap or shared_beginning or (biases_clamp and not (sizes2 or sizes3)) or guesses_have or "
    "few_tokens_as_if or like_three or what_the_gpu_keeps or experts_in_fp8 or times_fp8 or "
    "4_bits or few_tokens_times or last_rank or several_chunks_agree"
)
"""Tests of each of the kernels of attention, experts, guesses, sums and log-probabilities, with all
options."""


def test_triton_translates_each_kernel_of_attention_experts_and_guesses_for_a_gpu():
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider"]
    command += ["-p", "tests.translate", *TESTS, "-k", SOME]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("translated:"))
    assert set(line.split()[1:]) >= {
        *("_decode_kernel", "_prefill_kernel", "_shared_kernel"),
        *("_begin_kernel", "_accept_kernel"),
        *("_route_kernel", "_gate_up_kernel", "_down_kernel", "_grouped_kernel"),
        *("_grouped_fragments_kernel", "_grouped_fp8_kernel"),
        *(
            "_matvec_kernel",
            "_few_rows_kernel",
            "_int4_matvec_kernel",
            "_int4_product_kernel",
            "_int4_dequantize_kernel",
        ),
        *("_choose_kernel", "_pair_gate_up_kernel", "_pair_down_kernel"),
        *("_tagged_sum_kernel", "_flagged_sum_kernel"),
        *("_whole_norm_kernel", "_divided_norm_kernel", "_pushed_columns_kernel"),
        *("_scan_kernel", "_find_kernel"),
    }
