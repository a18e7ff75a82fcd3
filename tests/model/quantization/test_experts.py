"""Mixtures whose experts are quantized as other projections are."""

import pytest
import torch
from checkpoints import FAMILIES, random_weights, write_checkpoint, write_json, write_weights
from safetensors.torch import load_file

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.engine.backends import choose_modules
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.decoder import Decoder
from minimal_vllm.model.loader import init_random, load_model
from minimal_vllm.model.quantization.experts import QuantizedExperts
from minimal_vllm.model.quantization.fp8 import quantize_rows
from minimal_vllm.model.quantization_config import choose_quantization
from minimal_vllm.model.quantized_experts import experts_format
from minimal_vllm.model.weight_bytes import idle_expert_bytes, weight_bytes

CPU = torch.device("cpu")
SIZES = {"hidden_size": 128, "moe_intermediate_size": 96, "num_experts": 5}
QWEN = {**FAMILIES["qwen3-moe-some-dense"], **SIZES}
MIXTRAL = FAMILIES["mixtral"]
LAYER = "model.layers.1.mlp.experts."


# ---- checkpoints, written after the formats' specifications --------------------------------------


def fp8_blocks(weight):
    rows, columns = weight.shape
    scale = torch.ones(-(-rows // 128), -(-columns // 128))
    wide = torch.empty_like(weight)
    for i in range(len(scale)):
        for j in range(len(scale[0])):
            block = slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128)
            scale[i, j] = weight[block].abs().max() / 448
            wide[block] = weight[block] / scale[i, j]
    numbers = wide.to(torch.float8_e4m3fn)
    factors = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    return {"weight": numbers, "weight_scale_inv": scale}, numbers.float() * factors


def fp8_channels(weight):
    numbers, scale = quantize_rows(weight)
    return {"weight": numbers, "weight_scale": scale}, numbers.float() * scale


def gptq(weight):
    """In groups of 32, symmetric: the zero point is 8, stored as 7."""
    out_size, in_size = weight.shape
    flat = weight.view(out_size, -1, 32)
    scale = (flat.abs().amax(-1) / 7).half().float()
    numbers = ((flat / scale[..., None]).round() + 8).clamp(0, 15).int()
    back = ((numbers - 8) * scale[..., None]).flatten(1)
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    columns = numbers.flatten(1).T.reshape(in_size // 8, 8, out_size)
    words = torch.zeros(in_size // 8, out_size, dtype=torch.int32)
    for place, shift in enumerate(shifts):
        words |= columns[:, place] << shift
    return {
        "qweight": words,
        "qzeros": torch.full((in_size // 32, out_size // 8), 0x77777777, dtype=torch.int32),
        "scales": scale.T.half().contiguous(),
        "g_idx": torch.arange(in_size, dtype=torch.int32) // 32,
    }, back


def compressed(storage, weights, ignored):
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"0": {"targets": ["Linear"], "format": storage, "weights": weights}},
        "ignore": ["lm_head", *ignored],
    }


CHANNEL = {"num_bits": 8, "type": "float", "strategy": "channel"}
QWEN_BLOCKS = {
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
    "modules_to_not_convert": ["lm_head", *(f"model.layers.{i}.mlp.gate" for i in range(4))],
}
FORMS = {
    "Qwen3 in FP8 blocks": (QWEN, QWEN_BLOCKS, fp8_blocks),
    "Qwen3 in FP8 per channel": (
        QWEN,
        compressed("float-quantized", CHANNEL, ["re:.*mlp.gate$"]),
        fp8_channels,
    ),
    "Mixtral in FP8 per channel": (
        MIXTRAL,
        compressed("float-quantized", CHANNEL, ["re:.*block_sparse_moe.gate"]),
        fp8_channels,
    ),
    "Qwen3 in 4 bits": (QWEN, {"quant_method": "gptq", "bits": 4, "group_size": 32}, gptq),
}
"""A model's config.json, its ``quantization_config``, and the function for one matrix."""


def is_quantized(name):
    return name.endswith(".weight") and any(
        part in name for part in ("_proj.", ".w1.", ".w2.", ".w3.")
    )


def write_pair(folder, form):
    """Write a quantized checkpoint, and one of the matrices that it stands for, in float32."""
    config, quantization, quantize = FORMS[form]
    plain, stored = random_weights(config), {}
    for name in list(plain):
        if is_quantized(name):
            tensors, plain[name] = quantize(plain[name])
            module = name.removesuffix("weight")
            stored |= {module + kind: each for kind, each in tensors.items()}
    kept = {name: each for name, each in plain.items() if not is_quantized(name)}
    for name, weights, settings in (
        ("plain", plain, {}),
        ("quantized", kept | stored, {"quantization_config": quantization}),
    ):
        (folder / name).mkdir()
        write_checkpoint(folder / name, config | settings)
        write_weights(folder / name, weights)
    return folder / "plain", folder / "quantized"


def log_probabilities(folder, **options):
    llm = LLM(str(folder), num_gpu_blocks_override=32, dtype="float32", **options)
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=1)
    outputs = llm.generate(["The rain in Spain", "and then, 12"], params, use_tqdm=False)
    return [
        (each.outputs[0].token_ids, [best[token].logprob for token, best in
         zip(each.outputs[0].token_ids, each.outputs[0].logprobs, strict=True)])
        for each in outputs
    ]  # fmt: skip


def load(folder, dtype=torch.bfloat16):
    config = ModelConfig.from_checkpoint(folder)
    modules = choose_modules("tiled", config.quantization, dtype, CPU)
    return config, load_model(folder, config, dtype, CPU, modules=modules)


# ---- tests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_tokens_are_those_of_the_matrices_that_the_numbers_stand_for(tmp_path, form):
    plain, quantized = (log_probabilities(each) for each in write_pair(tmp_path, form))
    for (tokens, got), (expected_tokens, expected) in zip(quantized, plain, strict=True):
        assert tokens == expected_tokens
        assert got == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_experts_keep_their_size(tmp_path, form):
    config, model = load(write_pair(tmp_path, form)[1])
    held = sum(each.numel() * each.itemsize for each in model.parameters())
    promised = weight_bytes(config, "bfloat16")
    scales_of_cut_blocks = 4 * 4 * 5 * 6
    assert promised <= held <= promised + 5000 + scales_of_cut_blocks  # norms are in float32
    of_experts = sum(
        each.numel() * each.itemsize
        for module in model.modules()
        if isinstance(module, QuantizedExperts)
        for each in module.parameters()
    )
    idle = 1 - config.experts.per_token / config.experts.count
    promised = idle_expert_bytes(config, "bfloat16", 1)
    assert promised == pytest.approx(of_experts * idle, rel=0.02)


@pytest.mark.parametrize("family", ["qwen3-moe", "mixtral"])
def test_experts_can_be_quantized_while_they_are_loaded(tmp_path, family):
    folder = write_checkpoint(tmp_path, FAMILIES[family] | {"torch_dtype": "float32"})
    modules = choose_modules("tiled", choose_quantization("fp8", None), torch.float32, CPU)
    config = ModelConfig.from_checkpoint(folder)
    model = load_model(folder, config, torch.float32, CPU, modules=modules)
    plain = load_model(folder, config, torch.float32, CPU)
    for layer, other in zip(model.layers, plain.layers, strict=True):
        assert type(layer.mlp.router) is type(other.mlp.router)
        for expert in range(config.experts.count):
            got = layer.mlp.experts.matrices(expert, torch.float32)
            for each, exact in zip(
                got, other.mlp.experts.matrices(expert, torch.float32), strict=True
            ):
                numbers, scale = quantize_rows(exact)
                assert torch.equal(each, numbers.float() * scale)


def test_experts_that_are_ignored_keep_their_type(tmp_path):
    quantization = compressed("float-quantized", CHANNEL, ["re:.*mlp.gate$", "re:.*experts.*"])
    config = ModelConfig.from_dict(QWEN | {"quantization_config": quantization})
    assert experts_format(config) is None
    modules = choose_modules("tiled", config.quantization, torch.float32, CPU)
    model = Decoder(config, torch.float32, CPU, modules=modules)
    assert not any(isinstance(each, QuantizedExperts) for each in model.modules())
    held = sum(each.numel() * each.itemsize for each in model.parameters())
    assert held == weight_bytes(config, "float32")


def test_random_weights_can_be_drawn():
    config = ModelConfig.from_dict(QWEN | {"quantization_config": QWEN_BLOCKS})
    modules = choose_modules("tiled", config.quantization, torch.float32, CPU)
    model = Decoder(config, torch.float32, CPU, modules=modules)
    init_random(model, seed=0)
    for matrix in model.layers[1].mlp.experts.matrices(2, torch.float32):
        assert 0.01 < matrix.std() < 0.03


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"3.up_proj.weight_scale_inv": None}, rf"missing: {LAYER}3.up_proj.weight_scale$"),
        (
            {"4.down_proj.weight_scale_inv": torch.ones(2, 1)},
            r"misfitting: \S*4.down_proj.weight_scale is \[2, 1\], must be \[1, 1\]$",
        ),
        (
            {"0.gate_proj.weight": torch.ones(96, 128)},
            r"misfitting: \S*0.gate_proj.weight is F32, must be one of F8_E4M3$",
        ),
    ],
)
def test_tensors_that_are_missing_or_misfit_are_named_in_one_line(tmp_path, changes, complaint):
    _, folder = write_pair(tmp_path, "Qwen3 in FP8 blocks")
    weights = {
        name: each
        for file in folder.glob("*.safetensors")
        for name, each in load_file(file).items()
    }
    weights |= {LAYER + name: each for name, each in changes.items()}
    write_weights(folder, {name: each for name, each in weights.items() if each is not None})
    with pytest.raises(ValueError, match=complaint) as raised:
        load(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("config", "options", "complaint"),
    [
        (FAMILIES["gpt-oss"], {"quantization": "fp8"}, "can be quantized only in MXFP4"),
        (FAMILIES["qwen3-moe"], {"quantization": "int8"}, "'int8' is not for mixtures"),
        (
            QWEN | {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32,
             "desc_act": True}},
            {},
            "choose a checkpoint without desc_act",
        ),
        (
            QWEN | {"quantization_config": compressed(
                "float-quantized", CHANNEL, ["model.layers.1.mlp.experts.0.gate_proj"])},
            {},
            r"some experts, but not model.layers.1.mlp.experts.0.gate_proj: choose",
        ),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(tmp_path, config, options, complaint):
    write_checkpoint(
        tmp_path, {key: each for key, each in config.items() if key != "quantization_config"}
    )
    write_json(tmp_path / "config.json", config)
    with pytest.raises(ValueError, match=complaint):
        LLM(str(tmp_path), skip_tokenizer_init=True, **options)
