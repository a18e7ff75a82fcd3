"""8-bit integers in AMX's tiles against those that FBGEMM multiplies, whose sums are the same."""

import os
import subprocess
import sys

import pytest
import torch

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.engine import backends
from minimal_vllm.model.quantization import int8_amx
from minimal_vllm.model.quantization.convert import Layouts
from minimal_vllm.model.quantization.int8 import PackedInt8Weight
from minimal_vllm.model.quantization.int8_amx import FEW_TOKENS, AmxInt8Weight, can_multiply_tiles
from tests.checkpoints import FAMILIES, write_checkpoint

pytestmark = pytest.mark.skipif(not can_multiply_tiles(), reason="needs a CPU with AMX")
SHAPES = [(48, 32), (49, 40), (256, 1536)]


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(kind, shape):
    weight = kind(shape[1], {"a": shape[0]})
    weight.to_empty(device="cpu")
    weight.init_random(torch.Generator().manual_seed(0), std=1.0)
    weight.scale.copy_(random(shape[0], 1, seed=1).abs())
    weight.after_loading()
    return weight


@pytest.fixture(params=["small", "large"])
def is_small(request, monkeypatch):
    if request.param == "large":
        monkeypatch.setattr(int8_amx, "SMALL", 0)
    return request.param == "small"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_tokens", [0, 1, FEW_TOKENS, FEW_TOKENS + 1, 33])
def test_the_product_is_fbgemm_s_to_the_last_bit(shape, num_tokens, is_small):
    expected, found = make(PackedInt8Weight, shape), make(AmxInt8Weight, shape)
    assert hasattr(found, "packed") == is_small
    assert not hasattr(found, "weight")
    x, bias = random(num_tokens, shape[1], seed=2), random(shape[0], seed=3)
    assert torch.equal(found.product(x, bias), expected.product(x, bias))


def test_the_largest_sums_are_exact_without_overflow(is_small):
    weight = AmxInt8Weight(4096, {"a": 48})
    weight.to_empty(device="cpu")
    weight.weight.fill_(127)
    weight.scale.fill_(1)
    weight.after_loading()
    for sign in (1.0, -1.0):
        product = weight.product(torch.full((FEW_TOKENS + 1, 4096), sign), None)
        torch.testing.assert_close(product, torch.full_like(product, sign * 127 * 4096))


def test_nan_stays_in_its_row_and_zeros_give_zeros(is_small):
    weight = make(AmxInt8Weight, (64, 96))
    x = random(FEW_TOKENS + 2, 96, seed=1)
    x[1, 5] = torch.nan
    x[2] = 0
    product = weight.product(x, None)
    assert product[1].isnan().all()
    assert (product[2] == 0).all()
    assert product[[0, 3]].isfinite().all()


def test_the_matrix_can_be_read_back(is_small):
    expected, found = make(PackedInt8Weight, (49, 40)), make(AmxInt8Weight, (49, 40))
    matrix = found.dequantized(torch.float32)
    assert torch.equal(matrix, expected.dequantized(torch.float32))


@pytest.mark.usefixtures("is_small")
def test_a_model_generates_the_same_tokens(tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path, FAMILIES["llama"])
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    tokens = {}
    for kind in (PackedInt8Weight, AmxInt8Weight):
        monkeypatch.setattr(backends, "CPU_LAYOUTS", Layouts(int8=kind))
        llm = LLM(str(folder), device="cpu", quantization="int8", dtype="float32")
        outputs = llm.generate(["The rain in Spain", "and", "then, 12"], params)
        tokens[kind] = [each.outputs[0].token_ids for each in outputs]
    assert tokens[AmxInt8Weight] == tokens[PackedInt8Weight]


def test_a_cpu_with_amx_uses_it():
    assert backends.CPU_LAYOUTS.int8 is AmxInt8Weight


def test_products_that_overflow_on_a_cpu_taken_for_an_older_one_are_not_used():
    program = (
        "from minimal_vllm.model.quantization import int8_amx as a; print(a.can_multiply_tiles())"
    )
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout == "False\n"
