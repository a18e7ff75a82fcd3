"""Every activation in every kernel that gates, against PyTorch; without a GPU, interpreted."""

import pytest
import torch
from torch.nn.functional import linear, rms_norm

pytest.importorskip("triton")

from minimal_vllm.device.properties import is_hopper
from minimal_vllm.model.activation import ACTIVATIONS as EXPECTED
from minimal_vllm.model.kernels.activation import ACTIVATIONS
from minimal_vllm.model.kernels.gate import act_and_mul
from minimal_vllm.model.kernels.gated_product import gated_product
from minimal_vllm.model.kernels.matvec import add_norm_matvec

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPS = 1e-6


def numbers(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(DEVICE)


def gated(gate_up, activation):
    gate, up = gate_up.chunk(2, dim=-1)
    return EXPECTED[activation](gate) * up


def test_every_activation_of_the_model_has_a_kernel():
    assert ACTIVATIONS.keys() == EXPECTED.keys()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])  # as far as it saturates
def test_the_gate_alone_agrees_with_pytorch(activation, size):
    gate_up = size * numbers(3, 2 * 1100)
    torch.testing.assert_close(act_and_mul(gate_up, activation), gated(gate_up, activation))


@pytest.mark.gpu
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_gate_rounds_16_bit_numbers_where_pytorch_does(activation, dtype):
    gate_up = numbers(64, 2 * 3072).to(dtype)
    # Two steps of rounding: the exponential is another one. Where GELU is nearly 0, PyTorch's own
    # 1 + tanh has only a few digits left.
    torch.testing.assert_close(
        act_and_mul(gate_up, activation),
        gated(gate_up, activation),
        rtol=2 * torch.finfo(dtype).eps,
        atol=1e-4,
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_gated_product_with_one_token_agrees_with_pytorch(activation, bias):
    residual, x, norm = numbers(1, 72), numbers(1, 72), numbers(72)
    weight, shift = numbers(2 * 50, 72) * 72**-0.5, numbers(100) if bias else None
    total = torch.empty_like(residual)
    result = add_norm_matvec(residual, x, total, norm, EPS, weight, shift, activation=activation)
    torch.testing.assert_close(total, residual + x)
    normed = rms_norm(residual + x, (72,), norm, EPS)
    torch.testing.assert_close(result, gated(linear(normed, weight, shift), activation))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_gated_product_with_many_tokens_agrees_with_pytorch(activation):
    dtype = torch.float32
    if DEVICE.type == "cuda":
        if not is_hopper(DEVICE):
            pytest.skip("the kernel is for Hopper")
        dtype = torch.bfloat16
    x, weight = numbers(130, 128).to(dtype), (numbers(2 * 256, 128) * 128**-0.5).to(dtype)
    result = gated_product(x, weight, activation).float()
    expected = gated(linear(x, weight), activation).float()
    assert (result - expected).norm() < (1e-5 if dtype == torch.float32 else 2e-2) * expected.norm()
