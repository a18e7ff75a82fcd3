"""Kernels of quantized weights against the dequantized product; without a GPU, interpreted."""

from types import MethodType

import pytest
import torch
from torch.nn.functional import linear

pytest.importorskip("triton")

from checkpoints import FAMILIES

from minimal_vllm.model.activation import ACTIVATIONS, apply_gate
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.deferred import computed
from minimal_vllm.model.kernels.few_tokens import MAX_TOKENS
from minimal_vllm.model.kernels.fp8 import quantize_inputs
from minimal_vllm.model.kernels.int4_product import int4_dequantize
from minimal_vllm.model.layers import PLAIN_MODULES
from minimal_vllm.model.quantization.convert import Layouts, quantized
from minimal_vllm.model.quantization.fp8 import Fp8Weight
from minimal_vllm.model.quantization.int4 import Int4Weight
from minimal_vllm.model.quantization_config import Int4
from minimal_vllm.model.triton_modules import TRITON_MODULES
from minimal_vllm.model.triton_weights import (
    MANY_TOKENS,
    TRITON_LAYOUTS,
    TritonFp8Weight,
    TritonInt4Weight,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
TOLERANCE = 1e-2 if DEVICE.type == "cuda" else 1e-5
ROUNDED_INPUTS = 0.04  # relative error of inputs that are rounded to 3 bits of mantissa
ON_GPU = pytest.mark.gpu


def numbers(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(DEVICE, DTYPE)


def pair(plain, ours, *arguments):
    """Return the plain and the Triton weight with the same random contents."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    made = [kind(*arguments) for kind in (plain, ours)]
    for weight in made:
        weight.to(DEVICE)
        if getattr(weight, "packed", None) is not None:
            weight.scale = torch.nn.Parameter(weight.scale.to(DTYPE), requires_grad=False)
    made[0].init_random(generator, 0.05)
    made[0].scale.mul_(0.5 + torch.rand(made[0].scale.shape, device=DEVICE).to(made[0].scale.dtype))
    if getattr(made[0], "zero", None) is not None:
        made[0].zero.random_(0, 16, generator=generator)
    if getattr(made[0], "order", None) is not None:
        made[0].order.copy_(torch.randperm(len(made[0].order)))
    made[1].load_state_dict(made[0].state_dict())
    return made


def assert_close(got, expected, tolerance=TOLERANCE):
    assert got.shape == expected.shape
    assert (got - expected).float().norm() < tolerance * expected.float().norm()


INT4 = {
    "groups": (256, {"a": 64, "b": 24}, Int4(64, symmetric=True)),
    "zero points": (96, {"a": 40}, Int4(32, symmetric=False)),
    "whole columns": (384, {"a": 40}, Int4(None, symmetric=False)),
    "ordered": (256, {"a": 64}, Int4(128, symmetric=False, ordered=True)),
    "large": (4096, {"a": 1024}, Int4(128, symmetric=False)),
}
FP8 = {
    "rows": (256, {"a": 64, "b": 32}),
    "blocks": (256, {"a": 128, "b": 256}, (128, 128)),
    "cut blocks": (208, {"a": 64, "b": 192}, (128, 128)),
    "large": (4096, {"a": 1024}, (128, 128)),
    "large rows": (4096, {"a": 1024}),
}


FP8_ROWS = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"0": {"targets": ["Linear"], "weights": {
        "num_bits": 8, "type": "float", "strategy": "channel"}}},
}  # fmt: skip


def cases(table):
    return [pytest.param(name, marks=[ON_GPU] * ("large" in name)) for name in table]


def check_single_token(plain, ours, in_size):
    """One token, gated or not, behind a norm or not."""
    x, stream, bias = numbers(1, in_size), numbers(1, in_size), numbers(plain.out_size)
    for activation in (None, *ACTIVATIONS):
        tolerance = 2 * TOLERANCE if activation else TOLERANCE  # gate and up are both rounded
        for some in (bias, None):
            expected = plain.multiply(x, some, activation)
            assert_close(ours.multiply(x, some, activation), expected, tolerance)
        norm = TRITON_MODULES.norm("norm", in_size, 1e-6)
        norm.weight = torch.nn.Parameter(numbers(in_size), requires_grad=False)
        for add in (None, x):
            begin = (stream.clone(), None) if add is None else (add, stream.clone())
            expected_input, expected_stream = norm.forward(*begin)
            expected = plain.multiply(computed(expected_input), bias, activation)
            deferred, total = norm.forward(
                *(each if each is None else each.clone() for each in begin)
            )
            assert_close(ours.multiply(deferred, bias, activation), expected, tolerance)
            assert_close(total, expected_stream)


@pytest.mark.parametrize("name", cases(INT4))
def test_a_single_token_times_4_bits(name):
    arguments = INT4[name]
    check_single_token(*pair(Int4Weight, TritonInt4Weight, *arguments), arguments[0])


@pytest.mark.parametrize("name", cases(FP8))
def test_a_single_token_times_fp8(name):
    arguments = FP8[name]
    check_single_token(*pair(Fp8Weight, TritonFp8Weight, *arguments), arguments[0])


@pytest.mark.gpu  # without one, numbers are multiplied in float32
@pytest.mark.parametrize("size", [1e6, 1e-6, 0.0])
@pytest.mark.parametrize("kinds", [(Int4Weight, TritonInt4Weight), (Fp8Weight, TritonFp8Weight)])
def test_the_numbers_of_a_single_token_may_have_any_size(kinds, size):
    plain, ours = pair(*kinds, *(INT4 if kinds[0] is Int4Weight else FP8)["large"])
    x = size * numbers(1, plain.in_size)
    x[0, 1000:1064] *= 1e-3
    x[0, 2000:2064] = 0
    norm = TRITON_MODULES.norm("norm", plain.in_size, 1e-20)
    norm.weight = torch.nn.Parameter(numbers(plain.in_size), requires_grad=False)
    deferred, _ = norm.forward(x, torch.zeros_like(x))
    normed = computed(norm.forward(x, torch.zeros_like(x))[0])
    for got, expected in (
        (ours.multiply(x, None), plain.multiply(x, None)),
        (ours.multiply(deferred, None, "silu"), plain.multiply(normed, None, "silu")),
    ):
        if size:
            assert_close(got, expected)
        else:
            assert not got.any()


@pytest.mark.parametrize("num_tokens", [2, 17, 100, pytest.param(MANY_TOKENS, marks=ON_GPU)])
@pytest.mark.parametrize("name", cases(INT4))
def test_several_tokens_times_4_bits(name, num_tokens):
    arguments = INT4[name]
    plain, ours = pair(Int4Weight, TritonInt4Weight, *arguments)
    x, bias = numbers(num_tokens, arguments[0]), numbers(plain.out_size)
    assert_close(ours.multiply(x, bias), plain.multiply(x, bias))
    assert_close(ours.multiply(x, None, "silu"), plain.multiply(x, None, "silu"))


@pytest.mark.parametrize("name", cases(INT4))
def test_dequantizing_4_bits(name):
    plain, ours = pair(Int4Weight, TritonInt4Weight, *INT4[name])
    expected = plain.dequantized(DTYPE)
    if plain.order is not None:
        expected = expected[:, plain.order]
    assert_close(int4_dequantize(ours, numbers(1)), expected, TOLERANCE / 2)


@pytest.mark.parametrize("num_tokens", [2, 17, 100, pytest.param(3001, marks=ON_GPU)])
@pytest.mark.parametrize("name", cases(FP8))
def test_several_tokens_times_fp8(name, num_tokens):
    arguments = FP8[name]
    plain, ours = pair(Fp8Weight, TritonFp8Weight, *arguments)
    x, bias = numbers(num_tokens, arguments[0]), numbers(plain.out_size)
    assert_close(ours.multiply(x, bias), plain.multiply(x, bias), ROUNDED_INPUTS)
    gated = ours.multiply(x, None, "silu")
    assert_close(gated, plain.multiply(x, None, "silu"), 2 * ROUNDED_INPUTS)


QWEN = {"hidden_size": 256, "moe_intermediate_size": 128, "num_experts": 6}
EXPERTS = {
    "FP8 blocks": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, {}),
    "FP8 rows": (FP8_ROWS, {}),
    "FP8 cut blocks": (
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {"hidden_size": 208, "moe_intermediate_size": 100},
    ),
    "4 bits": ({"quant_method": "gptq", "bits": 4, "group_size": 64}, {}),
    "large FP8 blocks": (
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {"hidden_size": 2048, "moe_intermediate_size": 768, "num_experts": 32,
         "num_experts_per_tok": 8},
    ),
    "large FP8 rows": (FP8_ROWS, {"hidden_size": 2048, "moe_intermediate_size": 768}),
}  # fmt: skip
"""The quantization of a mixture, and sizes."""


@pytest.mark.parametrize("num_tokens", [0, 1, 5, 9, 70, pytest.param(3000, marks=ON_GPU)])
@pytest.mark.parametrize("name", cases(EXPERTS))
def test_experts_in_fp8_and_4_bits(name, num_tokens):
    quantization, sizes = EXPERTS[name]
    config = ModelConfig.from_dict(
        FAMILIES["qwen3-moe"] | QWEN | sizes | {"quantization_config": quantization}
    )
    generator = torch.Generator(DEVICE).manual_seed(0)
    plain, ours = (
        quantized(modules, config.quantization, layouts).experts(config).to(DEVICE)
        for modules, layouts in ((PLAIN_MODULES, Layouts()), (TRITON_MODULES, TRITON_LAYOUTS))
    )
    for weight in (*plain.children(), *ours.children()):
        if name == "4 bits":
            weight.scale = torch.nn.Parameter(weight.scale.to(DTYPE), requires_grad=False)
        weight.init_random(generator, 0.05)
        factors = 0.5 + torch.rand(weight.scale.shape, device=DEVICE)
        weight.scale.mul_(factors.to(weight.scale.dtype))
    ours.load_state_dict(plain.state_dict())
    x, count = numbers(num_tokens, config.hidden_size), config.experts.count
    order = torch.rand(num_tokens, count, generator=generator, device=DEVICE).argsort(1)
    x[:, :count] = order / 8 - 2  # no two alike
    routers = [
        modules.linear(config.hidden_size, {"gate": count}, False)
        for modules in (TRITON_MODULES, PLAIN_MODULES)
    ]
    for router in routers:  # whose logits are the first numbers of a token
        router.weight = torch.nn.Parameter(torch.eye(*router.weight.shape, dtype=DTYPE).to(DEVICE))
    is_rounded = "FP8" in name and (num_tokens > MAX_TOKENS or "cut" in name)
    if is_rounded:
        plain.compute_expert = MethodType(compute_expert_of_rounded_inputs, plain)
    got, expected = (
        computed(each.forward(x, router))
        for each, router in zip((ours, plain), routers, strict=True)
    )
    assert got.shape == expected.shape
    if num_tokens:
        # In 16 bits, results of gate and up differ in the last bit, and may be rounded otherwise.
        assert_close(got, expected, max(3 * TOLERANCE, 5e-3) if is_rounded else TOLERANCE)


def compute_expert_of_rounded_inputs(experts, index, x):
    def rounded(x, weight):
        group = weight.columns_per_scale
        numbers, scales = quantize_inputs(x.contiguous(), group)
        factors = scales.repeat_interleave(group, dim=1)[:, : x.shape[1]]
        return (numbers.float() * factors).to(x.dtype)

    gate_up, down = experts.matrices(index, x.dtype)
    gate, up = linear(rounded(x, experts.gate_up), gate_up).chunk(2, dim=-1)
    return linear(rounded(apply_gate(experts.gate, gate, up), experts.down), down)


@pytest.mark.gpu  # the interpreter rounds wrongly where a number reaches the next power of two
@pytest.mark.parametrize("group", [32, 128, 200])
def test_rounding_inputs_to_fp8(group):
    x = numbers(5, 200)
    got, scales = quantize_inputs(x, group)
    assert scales.shape == (5, -(-200 // group))
    back = got.float() * scales.repeat_interleave(group, dim=1)[:, :200]
    assert (back - x.float()).abs().le(x.float().abs() / 15 + 1e-3).all()
