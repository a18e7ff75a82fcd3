"""Experts in MXFP4. The oracle's matrix (tests/oracle) compares their tokens with transformers'."""

import re

import pytest
import torch
from checkpoints import (
    FAMILIES,
    QUANTIZED,
    random_weights,
    write_checkpoint,
    write_json,
    write_weights,
)
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from minimal_vllm import LLM
from minimal_vllm.engine.backends import choose_modules
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.decoder import Decoder
from minimal_vllm.model.loader import init_random, load_model
from minimal_vllm.model.quantization.mxfp4 import Mxfp4Matrices
from minimal_vllm.model.weight_bytes import idle_expert_bytes, weight_bytes

CONFIG = QUANTIZED["gpt-oss-mxfp4"]
CPU = torch.device("cpu")
EXPERTS = "model.layers.0.mlp.experts."


@pytest.fixture(scope="module")
def weights():
    return random_weights(CONFIG)


def load(folder, weights, config=CONFIG, shards=1):
    write_checkpoint(folder, config, shards=shards)
    write_weights(folder, weights, shards)
    read = ModelConfig.from_checkpoint(folder)
    modules = choose_modules("tiled", read.quantization, torch.bfloat16, CPU)
    return read, load_model(folder, read, torch.bfloat16, CPU, modules=modules)


def test_a_number_is_one_of_sixteen_times_a_power_of_2():
    matrices = Mxfp4Matrices(1, 16, 32)
    positive = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    matrices.packed[0] = torch.arange(256, dtype=torch.uint8).view(16, 16)
    matrices.scale[0, :, 0] = torch.arange(120, 136, dtype=torch.uint8)
    got = matrices.dequantized(0, torch.float32)
    for row in range(16):
        for column in range(16):
            byte = 16 * row + column
            for place, bits in enumerate((byte % 16, byte // 16)):
                number = positive[bits % 8] * (-1 if bits >= 8 else 1)
                assert got[row, 2 * column + place] == number * 2.0 ** (row - 7)


def test_experts_are_those_that_transformers_dequantizes_and_keep_their_size(tmp_path, weights):
    config, model = load(tmp_path, weights, shards=3)
    experts = model.layers[0].mlp.experts
    for name, index in {"gate_up_proj": 0, "down_proj": 1}.items():
        blocks, scales = (weights[f"{EXPERTS}{name}_{kind}"] for kind in ("blocks", "scales"))
        expected = convert_moe_packed_tensors(blocks, scales)  # transposed
        for expert in range(config.experts.count):
            got = experts.matrices(expert, torch.bfloat16)[index]
            assert torch.equal(got, expected[expert].T)
    held = sum(each.numel() * each.itemsize for each in model.parameters())
    norms = 2 * config.num_layers + 1
    assert held == weight_bytes(config, "bfloat16") + 2 * norms * 32  # norms are in float32
    assert idle_expert_bytes(config, "bfloat16", 10**6) == pytest.approx(0)
    of_experts = sum(
        each.numel() * each.itemsize
        for name, each in model.named_parameters()
        if ".experts." in name
    )
    idle = idle_expert_bytes(config, "bfloat16", 1)
    assert idle == of_experts * 2 / 5  # a token has 3 of 5 experts


def test_random_weights_can_be_drawn():
    config = ModelConfig.from_dict(CONFIG)
    modules = choose_modules("tiled", config.quantization, torch.float32, CPU)
    model = Decoder(config, torch.float32, CPU, modules=modules)
    init_random(model, seed=0)
    gate_up, _ = model.layers[0].mlp.experts.matrices(0, torch.float32)
    assert 0.005 < gate_up.std() < 0.03


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"down_proj_scales": None}, rf"missing: {EXPERTS}down_proj_scales$"),
        (
            {"down_proj_blocks": torch.zeros(5, 32, 3, 16, dtype=torch.uint8)},
            r"misfitting: \S*down_proj_blocks is \[5, 32, 3, 16\], must be \[5, 32, 2, 16\]$",
        ),
        (
            {"gate_up_proj_scales": torch.ones(5, 128, 1)},
            r"misfitting: \S*gate_up_proj_scales is F32, must be one of U8$",
        ),
        (
            {"gate_up_proj": torch.ones(5, 32, 128)},
            rf"unexpected: {EXPERTS}gate_up_proj$",
        ),
    ],
)
def test_tensors_that_are_missing_or_misfit_are_named_in_one_line(
    tmp_path, weights, changes, complaint
):
    changed = {**weights, **{EXPERTS + name: each for name, each in changes.items()}}
    changed = {name: each for name, each in changed.items() if each is not None}
    with pytest.raises(ValueError, match=complaint) as raised:
        load(tmp_path, changed)
    assert "\n" not in str(raised.value)


def test_half_a_shard_is_named(tmp_path, weights):
    load(tmp_path, weights, shards=2)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"{re.escape(str(shard))} is not a complete") as raised:
        LLM(str(tmp_path), skip_tokenizer_init=True)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("config", "options", "complaint"),
    [
        (
            {**CONFIG, "quantization_config": {"quant_method": "mxfp4",
             "modules_to_not_convert": ["model.layers.1.mlp.experts"]}},
            {},
            r"modules_to_not_convert with 'model.layers.1.mlp.experts' is not supported",
        ),
        (
            {**FAMILIES["qwen3-moe"], "quantization_config": {"quant_method": "mxfp4"}},
            {},
            r"supported only for the experts of GptOssForCausalLM, not for Qwen3MoeForCausalLM",
        ),
        (
            {**CONFIG, "intermediate_size": 48},
            {},
            r"experts' matrices have 48 columns, which must be a multiple of 32",
        ),
        (FAMILIES["gpt-oss"], {"quantization": "fp8"}, r"can be quantized only in MXFP4"),
        (CONFIG, {"quantization": "fp8"}, r"already quantized with 'mxfp4'"),
        ({**FAMILIES["llama"], "swiglu_limit": 7.0}, {}, r"swiglu_limit = 7.0 is not supported"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(tmp_path, config, options, complaint):
    write_checkpoint(tmp_path, {**config, "intermediate_size": 64})
    write_json(tmp_path / "config.json", config)
    with pytest.raises(ValueError, match=complaint):
        LLM(str(tmp_path), skip_tokenizer_init=True, **options)
