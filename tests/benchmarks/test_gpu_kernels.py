"""All kernels are timed with arguments that they take; in Triton's interpreter, tiny, untimed."""

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.gpu_kernels import all_timings
from benchmarks.kernel_timing import Bench, Shape

KERNELS = {
    *("decode", "shared", "prefill", "library", "matvec", "split_linear", "gated_product"),
    *("add_norm", "act_and_mul", "norm_rotate_store", "find_logprobs"),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted here")
def test_every_kernel_is_timed_and_has_a_floor():
    shape = Shape(num_heads=2, num_kv_heads=1, head_dim=16, hidden=1024, inner=1024)
    timings = list(all_timings(Bench(shape, torch.device("cpu"), scale=0.01)))
    assert {timing.kernel for timing in timings} == KERNELS
    assert all(timing.floor > 0 for timing in timings)


def test_the_floor_of_decode_is_its_keys_and_values_at_the_rate_of_a_copy():
    shape = Shape(num_heads=16, num_kv_heads=8, head_dim=128, hidden=1024, inner=3072)
    assert shape.kv_bytes == 4096
