import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from minimal_vllm.runner.compile import compile_in_parallel


@triton.jit
def _fill_kernel(x, number: tl.constexpr):
    tl.store(x + tl.arange(0, 16), number)


def kernels_that_are_ready():
    return len(_fill_kernel.device_caches[torch.cuda.current_device()][0])


@pytest.mark.gpu
def test_kernels_are_compiled_once_and_not_launched():
    x = torch.zeros(16, device="cuda")

    def step():
        for number in (3, 4, 3):
            _fill_kernel[(1,)](x, number=number)

    compile_in_parallel([step, step])
    assert not x.any()
    assert kernels_that_are_ready() == 2
    step()
    assert x.tolist() == [3] * 16
    assert kernels_that_are_ready() == 2


@pytest.mark.gpu
def test_a_kernel_that_does_not_compile_is_an_error_and_launches_go_on_afterwards():
    x = torch.zeros(16, device="cuda")
    with pytest.raises(triton.CompilationError):
        compile_in_parallel([lambda: _fill_kernel[(1,)](x, number="three")])
    _fill_kernel[(1,)](x, number=5)
    assert x.tolist() == [5] * 16
