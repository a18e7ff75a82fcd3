"""Quantized weights that several ranks divide. Here the ranks are threads; see test_divided.py."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from checkpoints import FAMILIES, QUANTIZED, random_weights, write_json, write_weights
from dense_attention import TOKEN_IDS, compute_logits, dense_cache  # noqa: F401
from gguf_files import write_gguf
from thread_ranks import Meeting, ThreadRanks, in_ranks

from minimal_vllm.engine.backends import choose_modules
from minimal_vllm.model import safetensors_file
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.divided_config import divide
from minimal_vllm.model.divided_modules import divided
from minimal_vllm.model.divided_weights import Share
from minimal_vllm.model.layers import SelfAttention
from minimal_vllm.model.loader import load_model
from minimal_vllm.model.quantization.convert import FORMATS
from minimal_vllm.model.quantization_config import (
    ON_THE_FLY,
    Fp8Blocks,
    choose_quantization,
    quantization_of,
)
from minimal_vllm.model.weight_bytes import weight_bytes
from tests.model.test_divided import Spied

CPU = torch.device("cpu")
SHAPE = {
    **FAMILIES["llama"],
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "head_dim": 128,
}
"""Wide enough that 4 ranks have whole blocks of 128 rows and columns, and share 2 heads of keys."""
FUSED = {**SHAPE, **{key: FAMILIES["phi3"][key] for key in ("architectures", "model_type")},
         "pad_token_id": None, "sliding_window": None}  # fmt: skip


def compressed(storage, **weights):
    return {
        "quant_method": "compressed-tensors",
        "format": storage,
        "config_groups": {"0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }


def int4(**weights):
    return compressed("pack-quantized", num_bits=4, type="int", **weights)


def fp8(strategy):
    return compressed("float-quantized", num_bits=8, type="float", strategy=strategy)


MIXTURE = {
    **{key: each for key, each in SHAPE.items() if key not in ("architectures", "model_type")},
    **{key: FAMILIES["qwen3-moe"][key] for key in ("architectures", "model_type")},
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
}


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": False}
STORED = {
    "fp8-blocks": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "fp8-channel": fp8("channel"),
    "fp8-tensor": fp8("tensor"),
    "int4": int4(strategy="group", group_size=32, symmetric=True),
    "int4-zeros": int4(strategy="group", group_size=128, symmetric=False),
    "int4-channel": int4(strategy="channel", symmetric=True),
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 64},
    "gptq": GPTQ,
    "gptq-channel-ordered": {
        **GPTQ,
        "group_size": -1,
        "desc_act": True,
    },
}
"""``quantization_config`` of formats that divide; the tools' own files are too small for it."""


def quantized_tensors(config):
    """Random tensors of a checkpoint in the format of a config.json."""
    stored = quantization_of(config).format
    make_reader, _ = FORMATS[type(stored)]
    generator, tensors = torch.Generator().manual_seed(1), {}
    for path, weight in random_weights(config).items():
        if not path.endswith("_proj.weight"):
            tensors[path] = weight
            continue
        for kind, expected in make_reader(stored).tensors(*weight.shape).items():
            tensors[f"{path.removesuffix('weight')}{kind}"] = random_tensor(
                kind, expected, generator
            )
    return tensors


def random_tensor(kind, expected, generator):
    if kind.endswith("g_idx"):
        return torch.zeros(expected.shape, dtype=torch.int32)  # where groups matter, see below
    if expected.dtypes == ("I32",):
        return torch.randint(-(2**31), 2**31, expected.shape, generator=generator).int()
    numbers = torch.randn(expected.shape, generator=generator)
    if expected.dtypes == ("F8_E4M3",):
        return (16 * numbers).to(torch.float8_e4m3fn)
    return 0.008 * (1 + numbers.abs())


def write(folder, shape, quantization):
    config = {**shape, "quantization_config": quantization}
    tensors = quantized_tensors(config)
    for path, groups in tensors.items():
        if path.endswith("g_idx") and quantization["group_size"] > 0:
            groups.copy_(torch.arange(len(groups)) // quantization["group_size"])
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", config)
    write_weights(folder, tensors, shards=3)
    return folder


def load(path, ranks=None, on_the_fly=None):
    """A rank's part of a model, or the whole, with the modules that a CPU's engine has."""
    whole = ModelConfig.from_checkpoint(path)
    whole = replace(whole, quantization=choose_quantization(on_the_fly, whole.quantization))
    modules = choose_modules("tiled", whole.quantization, torch.float32, CPU)
    modules = replace(modules, attention=SelfAttention)  # which dense attention can stand in for
    if ranks is None:
        return load_model(path, whole, torch.float32, CPU, modules=modules)
    modules = divided(modules, ranks, whole.vocab_size)
    own, share = divide(whole, ranks.count), Share(whole, ranks.index)
    return load_model(path, own, torch.float32, CPU, modules=modules, share=share)


def logits(path, ranks=None, on_the_fly=None):
    return compute_logits(load(path, ranks, on_the_fly), [13, 1, 26] if ranks else [len(TOKEN_IDS)])


def check_logits(count, path, on_the_fly=None):
    expected = logits(path, None, on_the_fly)
    # In int8, each rank also rounds its share of a token's numbers by itself.
    error = 0.05 if on_the_fly == "int8" else 2e-3
    every = in_ranks(count, lambda ranks: logits(path, ranks, on_the_fly))
    torch.testing.assert_close(every[0], expected, rtol=0, atol=error)
    assert all(torch.equal(each, every[0]) for each in every), "ranks would sample differently"


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("shape", [SHAPE, FUSED], ids=["llama", "phi3"])
@pytest.mark.parametrize("stored", STORED)
def test_stored_scales_are_divided_with_their_weights(tmp_path, stored, shape, count):
    check_logits(count, write(tmp_path, shape, STORED[stored]))


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("family", ["llama-mha-tied", "llama-mqa-biases", "phi3", "olmo2"])
@pytest.mark.parametrize("method", ON_THE_FLY)
def test_a_row_is_quantized_as_if_it_were_whole(checkpoint, method, family, count):
    path = checkpoint(family)
    check_logits(count, path, method)
    whole, part = load(path, None, method), in_ranks(count, lambda ranks: load(path, ranks, method))
    for mine, theirs in zip(part[1].layers, whole.layers, strict=True):
        for one, other in ((mine.self_attn.o_proj, theirs.self_attn.o_proj),
                           (mine.mlp.down_proj, theirs.mlp.down_proj)):  # fmt: skip
            assert torch.equal(one.quantized.scale, other.quantized.scale)


@pytest.mark.parametrize("method", ON_THE_FLY)
def test_a_gguf_file_is_divided_and_then_quantized(tmp_path, method):
    write_gguf(tmp_path / "model.gguf", FAMILIES["qwen3"])
    check_logits(2, tmp_path / "model.gguf", method)


def test_experts_in_mxfp4_are_divided(checkpoint):
    check_logits(2, checkpoint("gpt-oss-mxfp4"))


@pytest.mark.parametrize("stored", ["fp8-blocks", "fp8-channel", "gptq"])
def test_experts_in_formats_of_projections_are_divided(tmp_path, stored):
    check_logits(2, write(tmp_path, MIXTURE, STORED[stored]))


def test_rows_of_experts_are_quantized_as_if_they_were_whole(checkpoint):
    path = checkpoint("qwen3-moe")
    check_logits(2, path, "fp8")
    whole, part = load(path, None, "fp8"), in_ranks(2, lambda ranks: load(path, ranks, "fp8"))
    for mine, theirs in zip(part[1].layers, whole.layers, strict=True):
        assert torch.equal(mine.mlp.experts.down.scale, theirs.mlp.experts.down.scale)


@pytest.mark.parametrize("stored", STORED)
def test_each_rank_holds_its_share_and_reads_no_more(tmp_path, stored, monkeypatch):
    path, sizes = write(tmp_path, SHAPE, STORED[stored]), []
    whole = load(path)
    monkeypatch.setattr(safetensors_file, "safe_open", partial(Spied, sizes))
    part = load(path, ThreadRanks(Meeting(2), 1))
    promised = weight_bytes(part.config, "float32")
    assert promised <= num_bytes(part) <= 1.02 * promised
    assert num_bytes(part) < 0.53 * num_bytes(whole)
    stored_bytes = sum(each.stat().st_size for each in path.glob("*.safetensors"))
    assert sum(sizes) < 0.53 * stored_bytes


def num_bytes(model):
    return sum(each.numel() * each.itemsize for each in model.parameters())


@pytest.mark.parametrize(
    ("stored", "shape", "ranks", "complaint"),
    [
        ("fp8-blocks", {"intermediate_size": 384}, 2, "192 rows of mlp.gate_proj, .* 128"),
        ("fp8-blocks", {"head_dim": 32}, 2, "64 rows of self_attn.q_proj, .* 128"),
        ("gptq", {"intermediate_size": 384}, 2, "192 columns of mlp.down_proj, .* 128"),
        ("awq", {"head_dim": 16}, 2, "32 columns of self_attn.o_proj, .* 64"),
        ("int4", {"head_dim": 20, "hidden_size": 80}, 4, "20 rows of self_attn.q_proj, .* 8 "),
    ],
)
def test_a_division_that_cuts_a_block_or_a_group_says_which(stored, shape, ranks, complaint):
    config = {**SHAPE, **shape, "quantization_config": STORED[stored]}
    with pytest.raises(ValueError, match=f"{ranks}, but each rank would have {complaint}"):
        divide(ModelConfig.from_dict(config), ranks)


def test_projections_that_are_not_quantized_may_be_cut_anywhere():
    config = {**SHAPE, "head_dim": 32, "quantization_config": {
        **STORED["fp8-blocks"], "modules_to_not_convert": ["self_attn"]}}  # fmt: skip
    assert isinstance(divide(ModelConfig.from_dict(config), 2).quantization.format, Fp8Blocks)


def test_groups_in_an_order_of_their_own_are_refused():
    quantization = {**STORED["gptq"], "desc_act": True}
    config = ModelConfig.from_dict({**SHAPE, "quantization_config": quantization})
    with pytest.raises(ValueError, match=r"tensor_parallel_size is 2, but .* \(desc_act\)"):
        divide(config, 2)


def test_experts_in_blocks_that_would_be_cut_are_refused():
    config = ModelConfig.from_dict({**MIXTURE, "quantization_config": STORED["fp8-blocks"]})
    with pytest.raises(ValueError, match="64 channels per expert, which must be a multiple of 128"):
        divide(config, 4)


def test_experts_in_mxfp4_that_would_be_cut_within_a_group_are_refused():
    config = ModelConfig.from_dict(QUANTIZED["gpt-oss-mxfp4"])
    with pytest.raises(ValueError, match="16 channels per expert, which must be a multiple of 32"):
        divide(config, 4)
