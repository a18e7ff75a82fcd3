"""A model whose weights are packed in half precision computes what its float32 weights do."""

from dataclasses import replace

import pytest
import torch
from checkpoints import FAMILIES, random_weights, write_json, write_tokenizer, write_weights

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.engine import backends
from minimal_vllm.engine.sizing import choose_dtype
from minimal_vllm.model import packed_linear
from minimal_vllm.model.cpu_modules import with_fewer_calls
from minimal_vllm.model.layers import PLAIN_MODULES
from minimal_vllm.model.linear import Linear
from minimal_vllm.model.packed_linear import (
    PackedGatedLinear,
    PackedLinear,
    PackedProjection,
    PackedRowLinear,
    can_pack,
    relative_error,
)
from minimal_vllm.model.scripted_layers import ScriptedLayers

pytestmark = pytest.mark.skipif(not can_pack(torch.float32), reason="needs FBGEMM")


def filled(projection, weight):
    """``projection`` with that weight, loaded."""
    projection.weight.copy_(weight)
    if projection.bias is not None:
        projection.bias.copy_(torch.randn(len(weight)))
    return projection


def bfloat16_numbers(*shape):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.02).bfloat16()


def is_packed(projection):
    return projection.packed is not None


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 33])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_product_is_the_plain_one(rows, bias, dtype):
    plain = filled(Linear(48, {"a": 40, "b": 25}, bias), bfloat16_numbers(65, 48))
    packed = PackedLinear(48, {"a": 40, "b": 25}, bias)
    packed.load_state_dict(plain.state_dict())
    packed.after_loading(approximate=False)
    assert is_packed(packed)
    assert not hasattr(packed, "weight")
    x = torch.randn(rows, 48)
    out = packed.forward(x.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out, plain.forward(x.to(dtype).float()).to(dtype))


def test_every_kind_of_projection_is_packed():
    x = torch.randn(3, 48)
    for packed in (
        PackedRowLinear(48, {"o_proj": 32}, False),
        PackedGatedLinear(48, 16, True, "silu"),
    ):
        filled(packed, bfloat16_numbers(32, 48))
        expected = packed.forward(x)
        packed.after_loading(approximate=False)
        assert is_packed(packed)
        torch.testing.assert_close(packed.forward(x), expected)


@pytest.mark.parametrize(
    ("weight", "approximate", "packed"),
    [
        (bfloat16_numbers(64, 48), False, True),
        (bfloat16_numbers(64, 48).float() * 1.1, False, False),  # no 16-bit numbers
        (bfloat16_numbers(64, 48).float() * 1.1, True, True),
        (bfloat16_numbers(64, 48).float() * 1e7, True, False),  # too large
        (bfloat16_numbers(64, 48).float() * 1e-7, True, False),  # too small
        (torch.full((64, 48), torch.nan), True, False),
        (torch.zeros(64, 48), False, True),
    ],
)
def test_a_matrix_is_packed_if_that_loses_nothing(weight, approximate, packed):
    projection = filled(PackedLinear(48, {"a": 64}, False), weight)
    projection.after_loading(approximate)
    assert is_packed(projection) == packed


def test_the_error_of_bfloat16_numbers_is_below_float32_s_own():
    assert relative_error(bfloat16_numbers(576, 1536).float()) < packed_linear.ROUNDING
    rounded = bfloat16_numbers(64, 48).float() * 1.1
    assert packed_linear.ROUNDING < relative_error(rounded) < packed_linear.QUANTIZED_ROUNDING


def write_bfloat16(folder, family):
    config = FAMILIES[family]
    weights = {name: each.bfloat16() for name, each in random_weights(config).items()}
    write_json(folder / "config.json", config)
    write_weights(folder, weights)
    write_tokenizer(folder)


@pytest.mark.parametrize("family", ["llama", "llama-mqa-biases", "qwen3"])
def test_a_model_in_bfloat16_gives_the_tokens_of_plain_modules(tmp_path, monkeypatch, family):
    write_bfloat16(tmp_path, family)
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, logprobs=0)
    texts = ["The rain", "and then, 12", "x"]
    packed = LLM(str(tmp_path), dtype="float32")
    monkeypatch.setattr(backends, "PACKED_MODULES", PLAIN_MODULES)
    plain = LLM(str(tmp_path), dtype="float32")
    layers = packed.engine._runner._model.decoder.modules()
    assert all(is_packed(each) for each in layers if isinstance(each, PackedProjection))
    for found, expected in zip(
        packed.generate(texts, params), plain.generate(texts, params), strict=True
    ):
        assert found.outputs[0].token_ids == expected.outputs[0].token_ids
        assert found.outputs[0].cumulative_logprob == pytest.approx(
            expected.outputs[0].cumulative_logprob, abs=1e-4
        )


@pytest.mark.parametrize(
    ("has_instructions", "dtype", "packs", "warns"),
    [
        (False, torch.float32, True, False),
        (False, torch.bfloat16, True, True),
        (True, torch.float32, True, False),
        (True, torch.bfloat16, False, False),
    ],
)
def test_16_bit_activations_need_instructions(
    monkeypatch, caplog, has_instructions, dtype, packs, warns
):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_instructions)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    name = str(dtype).removeprefix("torch.")
    assert choose_dtype(name, "float16", torch.device("cpu")) == dtype
    assert can_pack(dtype) == packs
    assert bool(caplog.records) == warns
    assert all(name in record.getMessage() for record in caplog.records)


def test_reference_attention_has_plain_modules_beside_it():
    cpu = torch.device("cpu")
    assert backends.choose_modules("reference", None, torch.float32, cpu) is PLAIN_MODULES
    fast = backends.choose_modules("auto", None, torch.float32, cpu)
    assert fast == replace(with_fewer_calls(packed_linear.PACKED_MODULES), layers=ScriptedLayers)
