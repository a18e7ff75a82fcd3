import pytest
from checkpoints import FAMILIES

from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.quantization_config import (
    AwqInt4,
    Fp8Blocks,
    Fp8Rows,
    GptqInt4,
    PackedInt4,
    read_quantization,
)

DYNAMIC = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}


def compressed(storage, activations=None, **weights):
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": storage,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:.*layers\\.0\\.mlp"],
    }


FP8 = {"num_bits": 8, "type": "float"}
INT4 = {"num_bits": 4, "type": "int"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
READ = {
    "blocks": (
        {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
        Fp8Blocks(),
    ),
    "one scale": ({"quant_method": "fp8", "activation_scheme": "static"}, Fp8Rows(scales=1)),
    "channels": (compressed("float-quantized", DYNAMIC, **FP8, strategy="channel"), Fp8Rows()),
    "tensor": (compressed("float-quantized", None, **FP8, strategy="tensor"), Fp8Rows(scales=1)),
    "compressed blocks": (
        compressed("float-quantized", None, **FP8, strategy="block", block_structure=[128, 128]),
        Fp8Blocks(),
    ),
    "packed": (
        compressed("pack-quantized", None, **INT4, strategy="group", group_size=32),
        PackedInt4(32, symmetric=True),
    ),
    "packed, ordered": (
        compressed(
            "pack-quantized", None, **INT4, strategy="group", group_size=64, actorder="group"
        ),
        PackedInt4(64, symmetric=True, ordered=True),
    ),
    "packed channels": (
        compressed("pack-quantized", None, **INT4, strategy="channel", symmetric=False),
        PackedInt4(None, symmetric=False),
    ),
    "awq": (AWQ, AwqInt4(128, symmetric=False)),
    "gptq": (GPTQ, GptqInt4(128, symmetric=True)),
    "gptq, v2, whole columns": (
        GPTQ | {"checkpoint_format": "gptq_v2", "group_size": -1, "desc_act": True, "sym": False},
        GptqInt4(None, symmetric=False, ordered=True, zero_offset=0),
    ),
}


def transformed(location):
    transforms = {
        "R": {"type": "hadamard", "apply": [{"location": location, "targets": ["Linear"]}]}
    }
    stored = compressed("pack-quantized", **INT4, strategy="channel")
    return stored | {"transform_config": {"config_groups": transforms}}


REFUSED = {
    "transforms": (transformed("input"), "a transform of activations is not supported"),
    "no method": (
        {"bits": 4},
        "quant_method = None is not supported; choose a checkpoint in 'fp8'",
    ),
    "bitsandbytes": ({"quant_method": "bitsandbytes"}, "load the original checkpoint, with --quan"),
    "nvfp4": ({"quant_method": "modelopt"}, "compressed-tensors or fp8"),
    "nvfp4, compressed": (
        compressed("nvfp4-pack-quantized", **INT4),
        "'nvfp4-pack-quantized' of compressed-tensors is not supported; choose",
    ),
    "int8": (compressed("int-quantized", num_bits=8), "the format 'int-quantized'"),
    "w8a16": (compressed("pack-quantized", num_bits=8, type="int"), "num_bits = 8 .* only 4 is"),
    "w4a8": (compressed("pack-quantized", DYNAMIC, **INT4), "activations beside 4-bit weights"),
    "other blocks": ({"quant_method": "fp8", "weight_block_size": [64, 64]}, r"\[64, 64\] is not"),
    "e5m2": ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt = 'e5m2' is not supported"),
    "3 bits": (GPTQ | {"bits": 3}, "bits = 3 is not supported; only 4 is"),
    "group size": (AWQ | {"group_size": 48}, "group_size = 48 is not supported; only 32, 64, 128"),
    "gemv": (AWQ | {"version": "gemv"}, "version = 'gemv' is not supported; only 'gemm' is"),
    "marlin": (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format = 'marlin'"),
    "per module": (GPTQ | {"dynamic": {"-:x": {}}}, "dynamic = "),
    "two groups": (
        compressed("pack-quantized") | {"config_groups": {"a": {}, "b": {}}},
        "2 config_groups is not supported; choose a checkpoint whose layers",
    ),
}


@pytest.mark.parametrize("name", READ)
def test_published_settings_are_understood(name):
    raw, stored = READ[name]
    assert read_quantization(raw).format == stored


def test_transforms_that_are_merged_into_the_weights_change_nothing():
    assert read_quantization(transformed("weight_output")).format == PackedInt4(None, True)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_by_name(name):
    raw, complaint = REFUSED[name]
    with pytest.raises(ValueError, match=complaint) as raised:
        ModelConfig.from_dict({**FAMILIES["llama"], "quantization_config": raw})
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("raw", "name", "covered"),
    [
        (READ["packed"][0], "model.layers.1.mlp.up_proj", True),
        (READ["packed"][0], "model.layers.0.mlp.up_proj", False),
        (READ["packed"][0], "model.layers.10.mlp.up_proj", True),
        (AWQ | {"modules_to_not_convert": ["self_attn"]}, "model.layers.0.self_attn.q_proj", False),
        (AWQ | {"modules_to_not_convert": ["self_attn"]}, "model.layers.0.mlp.up_proj", True),
        (
            {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.1"]},
            "model.layers.1.mlp.up_proj",
            False,
        ),
        (
            {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.1"]},
            "model.layers.11.mlp.up_proj",
            True,
        ),
        (GPTQ, "lm_head", False),
    ],
)
def test_ignored_modules_keep_their_dtype(raw, name, covered):
    assert read_quantization(raw).covers(name) is covered
