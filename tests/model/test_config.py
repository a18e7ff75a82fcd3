import json
import math
import subprocess
import sys

import pytest
import torch
from checkpoints import FAMILIES, QUANTIZED, tensor_shapes
from transformers import AutoConfig, AutoModelForCausalLM

from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.layer_config import LayerConfig
from minimal_vllm.model.registry import FAMILIES as ARCHITECTURES
from minimal_vllm.model.registry import MULTIMODAL
from minimal_vllm.model.rope import rope_table
from minimal_vllm.model.rope_config import Llama3Scaling, RopeConfig, YarnScaling

LLAMA = FAMILIES["llama"]
MISTRAL = FAMILIES["mistral"]
QWEN2 = FAMILIES["qwen2"]
QWEN3 = FAMILIES["qwen3"]
SMOLLM3 = FAMILIES["smollm3"]


def read(config, **changes):
    return ModelConfig.from_dict({**config, **changes})


def without(config, *keys):
    return {key: value for key, value in config.items() if key not in keys}


def test_every_architecture_has_a_checkpoint_to_test_with():
    tested = {config["architectures"][0] for config in FAMILIES.values()}
    assert tested == {*ARCHITECTURES, *MULTIMODAL}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_config_that_transformers_saves_means_the_same(name, tmp_path):
    """Transformers v5 rewrites v4's keys, and spells out its defaults."""
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES[name]))
    saved = AutoConfig.from_pretrained(tmp_path)
    saved.save_pretrained(tmp_path)
    rewritten = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in rewritten.get("text_config", rewritten)
    assert ModelConfig.from_checkpoint(tmp_path) == ModelConfig.from_dict(FAMILIES[name])


@pytest.mark.parametrize("name", [name for name in FAMILIES if "text_config" not in FAMILIES[name]])
def test_parameters_are_counted_as_transformers_does(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES[name]))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    config = ModelConfig.from_checkpoint(tmp_path)
    assert config.num_parameters == sum(p.numel() for p in model.parameters())
    assert config.num_parameters == sum(
        torch.Size(shape).numel() for shape in tensor_shapes(FAMILIES[name]).values()
    )


def test_qwen3_8b_needs_147_kb_of_cache_per_token():
    shape = {"num_hidden_layers": 36, "num_key_value_heads": 8, "num_attention_heads": 32}
    config = read(QWEN3, **shape, head_dim=128)
    assert config.kv_bytes_per_token("bfloat16") == 147_456
    assert config.kv_bytes_per_token("float32") == 2 * 147_456


def test_keys_that_old_configs_lack_have_the_defaults_of_transformers():
    old = without(LLAMA, "num_key_value_heads", "rope_theta", "rms_norm_eps", "torch_dtype")
    config = read(without(old, "tie_word_embeddings", "hidden_act", "eos_token_id"))
    assert config.num_kv_heads == config.num_heads
    assert config.rope == RopeConfig(10000.0)
    assert config.rms_norm_eps == 1e-6
    assert config.dtype == "float32"
    assert config.tie_word_embeddings is False
    assert config.eos_token_ids == ()
    assert read(without(QWEN3, "head_dim")).head_dim == 128
    assert read(without(SMOLLM3, "tie_word_embeddings")).tie_word_embeddings is True
    assert read(SMOLLM3).rope.theta == 2e6
    assert read(LLAMA, head_dim=None, rope_scaling=None).head_dim == 8


def windows(config, **changes):
    return [layer.window for layer in read(config, **changes).layers]


def test_mistral_slides_all_windows_unless_null():
    assert windows(MISTRAL, sliding_window=8) == [8, 8, 8]
    assert windows(MISTRAL, sliding_window=None) == [None] * 3
    assert windows(without(MISTRAL, "sliding_window")) == [4096] * 3


def test_qwen_slides_the_windows_of_the_upper_layers_if_told_so():
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    assert windows(QWEN2, **window) == [None, None, 8]
    assert windows(QWEN2, **{**window, "use_sliding_window": False}) == [None] * 3
    assert windows(QWEN2, **{**window, "sliding_window": None}) == [None] * 3
    assert windows(QWEN2, use_sliding_window=True, num_hidden_layers=30)[27:] == [None, 4096, 4096]
    layer_types = ["sliding_attention", "full_attention", "full_attention"]
    assert windows(QWEN3, **window, layer_types=layer_types) == [8, None, None]


def test_every_fourth_layer_of_smollm3_is_not_rotated():
    full, nope = LayerConfig(window=None, rope=True), LayerConfig(window=None, rope=False)
    assert read(SMOLLM3, num_hidden_layers=9).layers == (full, full, full, nope) * 2 + (full,)
    assert read(SMOLLM3, no_rope_layers=[0, 1, 1, 0, 1]).layers == (nope, full, full, nope)
    window = {"use_sliding_window": True, "sliding_window": 8}
    assert windows(SMOLLM3, **window, no_rope_layers=[0, 1, 1, 0]) == [8, None, None, 8]


def test_biases_are_where_the_architecture_has_them():
    def biases(config):
        return config.qkv_bias, config.o_bias, config.mlp_bias

    both = {"attention_bias": True, "mlp_bias": True}
    assert biases(read(LLAMA)) == (False, False, False)
    assert biases(read(LLAMA, **both)) == (True, True, True)
    assert biases(read(QWEN3, **both)) == (True, True, False)
    assert biases(read(QWEN2)) == (True, False, False)
    assert biases(read(MISTRAL, **both)) == (False, False, False)


def test_rope_parameters_of_both_generations_are_read():
    yarn = {"factor": 4.0, "original_max_position_embeddings": 128}
    v4 = read(QWEN2, rope_theta=7.0, rope_scaling={**yarn, "type": "yarn"})
    v5 = read(
        without(QWEN2, "rope_theta"),
        rope_parameters={**yarn, "rope_type": "yarn", "rope_theta": 7.0, "beta_fast": None},
    )
    assert v4.rope == v5.rope == RopeConfig(7.0, YarnScaling(4.0, 128))


def test_the_trained_length_of_rope_is_found_where_transformers_looks_for_it():
    llama3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
    assert read(LLAMA, rope_scaling=llama3).rope.scaling == Llama3Scaling(8, 1, 4, 512)
    both = {**llama3, "original_max_position_embeddings": 64}
    assert read(LLAMA, rope_scaling=both).rope.scaling == Llama3Scaling(8, 1, 4, 64)
    config = read(LLAMA, rope_scaling=both, original_max_position_embeddings=32)
    assert config.rope.scaling == Llama3Scaling(8, 1, 4, 32)
    assert read(LLAMA, original_max_position_embeddings=32).rope.scaling is None


def test_end_of_sequence_may_be_one_token_or_several():
    assert read(LLAMA, eos_token_id=5).eos_token_ids == (5,)
    assert read(LLAMA, eos_token_id=[7, 5]).eos_token_ids == (7, 5)


REFUSED = {
    "no architecture": (
        {"architectures": None, "model_type": None},
        "MistralForCausalLM, MinistralForCausalLM",
    ),
    "unknown model type": ({"architectures": [], "model_type": "gpt2"}, "'model_type' is 'gpt2'"),
    "unknown architecture": ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
    "two architectures": ({"architectures": ["LlamaForCausalLM"] * 2}, "architectures"),
    "missing key": ({"vocab_size": None}, "vocab_size is missing"),
    "no length": ({"max_position_embeddings": None}, "max_position_embeddings is missing"),
    "text for a number": ({"hidden_size": "64"}, "hidden_size is '64'"),
    "zero": ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    "text for a flag": ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
    "text for epsilon": ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'"),
    "negative end": ({"eos_token_id": [-1]}, "eos_token_id"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    "bidirectional": ({"is_causal": False}, "is_causal"),
    "dual chunks": ({"dual_chunk_attention_config": {"chunk_size": 1}}, "dual_chunk_attention"),
    "multiplier": ({"embedding_multiplier": 12.0}, "embedding_multiplier = 12.0"),
    "logn": ({"use_logn_attn": True}, "use_logn_attn = True is not supported; only False is"),
    "softcapping": ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    "dtype": ({"torch_dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
    "kv heads": ({"num_key_value_heads": 3}, "multiple of num_key_value_heads"),
    "heads": ({"num_attention_heads": 6}, "multiple of num_attention_heads"),
    "odd head": ({"head_dim": 7}, "head_dim is 7"),
    "partial rotation": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "window": ({"sliding_window": 8}, "sliding_window must be null"),
    "nope": ({"no_rope_layers": [1, 0, 1]}, "no_rope_layers"),
    "listed window": ({"layer_types": ["sliding_attention"] * 3}, "layer_types"),
    "linear attention": ({"layer_types": ["linear_attention"] * 3}, "'linear_attention'"),
    "too few layer types": ({"layer_types": ["full_attention"]}, "for each of the 3 layers"),
    "too many layer types": ({"layer_types": ["full_attention"] * 4}, "4 entries for 3 layers"),
    "layer types in text": ({"layer_types": "full"}, "layer_types is 'full'"),
}


CHANGES_NOTHING = {
    "no quantization": {"quantization_config": {}},
    "multipliers": dict.fromkeys(
        ["embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale"], 1.0
    ),
    "attention multiplier": {"attention_multiplier": 1.0},
    "swish": {"hidden_act": "swish"},
    "auto": {"torch_dtype": "auto"},
    "no theta": {"rope_theta": None},
    "no epsilon": {"rms_norm_eps": None},
    "no biases": {"attention_bias": None, "mlp_bias": None},
    "no window": {"use_sliding_window": None},
    "no architectures": {"architectures": None, "model_type": "llama"},
    "empty architectures": {"architectures": []},
    "old name": {"architectures": ["LLaMAForCausalLM"]},
    "default scaling": {"rope_scaling": {"type": "default", "factor": 1.0}},
    "no scaling": {"rope_scaling": {"rope_type": None, "factor": None}},
    "causal both ways": {"is_causal": True, "use_bidirectional_attention": False},
}


@pytest.mark.parametrize("name", CHANGES_NOTHING)
def test_what_changes_nothing_is_accepted(name):
    plain = {**LLAMA, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0}
    assert read(plain, **CHANGES_NOTHING[name]) == read(plain)


def test_what_changes_nothing_in_yarn_is_accepted():
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    notes = {"finetuned": True, "attn_factor": 1.0, "extrapolation_factor": 1}
    assert read(LLAMA, rope_scaling={**yarn, **notes}) == read(LLAMA, rope_scaling=yarn)
    with pytest.raises(ValueError, match="no parameter 'attn_factor'"):
        read(LLAMA, rope_scaling={**yarn, "attn_factor": 2.0})


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("bf16", "bfloat16"),
        ("torch.bfloat16", "bfloat16"),
        ("half", "float16"),
        ("fp16", "float16"),
    ],
)
def test_a_dtype_has_several_names(name, dtype):
    assert read(LLAMA, dtype=name).dtype == dtype


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "smollm3"])
def test_the_model_type_stands_in_for_the_architecture(family):
    assert read(FAMILIES[family], architectures=None) == read(FAMILIES[family])


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_by_name(name):
    changes, complaint = REFUSED[name]
    with pytest.raises(ValueError, match=complaint):
        read(LLAMA, **changes)


def test_a_window_that_contradicts_the_layer_types_is_refused():
    mixed = ["sliding_attention", "full_attention", "full_attention"]
    with pytest.raises(ValueError, match="layer_types contradicts"):
        read(MISTRAL, sliding_window=8, layer_types=mixed)
    with pytest.raises(ValueError, match="layer_types contradicts"):
        read(QWEN2, use_sliding_window=False, sliding_window=8, layer_types=mixed)
    with pytest.raises(ValueError, match="sliding_window is 0"):
        read(MISTRAL, sliding_window=0)
    with pytest.raises(ValueError, match="max_window_layers is missing"):
        read(QWEN2, use_sliding_window=True, max_window_layers=None)
    with pytest.raises(ValueError, match="for each of the 4 layers"):
        read(SMOLLM3, no_rope_layers=[1, 0])
    with pytest.raises(ValueError, match="no_rope_layer_interval is 0"):
        read(SMOLLM3, no_rope_layer_interval=0)


REFUSED_ROPE = {
    "dynamic": (
        {"type": "dynamic", "factor": 2.0},
        "depends on the current length of the sequence",
    ),
    "longrope": ({"rope_type": "longrope"}, "'short_factor' must be a list of positive numbers"),
    "unknown": ({"type": "mrope"}, "unknown rope type 'mrope'"),
    "missing": ({"type": "linear"}, "factor is missing"),
    "null": ({"type": "linear", "factor": None}, "factor is missing"),
    "text": ({"type": "linear", "factor": "2"}, "factor is '2', but must be a positive number"),
    "zero": ({"type": "linear", "factor": 0}, "factor is 0, but must be a positive number"),
    "text for an option": ({"type": "yarn", "factor": 2, "mscale": "1"}, "'mscale' must be a num"),
    "a list": (["linear", 2.0], "must be an object"),
    "unknown parameter": ({"type": "yarn", "factor": 2, "magic": 3}, "no parameter 'magic'"),
    "per layer type": ({"full_attention": {}}, "no parameter 'full_attention'"),
    "partial": ({"type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    "theta": ({"rope_theta": "1e6"}, "rope_theta is '1e6'"),
}


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("name", REFUSED_ROPE)
def test_rope_that_is_not_supported_is_refused_by_name(name, key):
    parameters, complaint = REFUSED_ROPE[name]
    with pytest.raises(ValueError, match=complaint):
        read(LLAMA, **{key: parameters})


@pytest.mark.parametrize("content", [None, b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_config_that_cannot_be_read_is_named(content, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        ModelConfig.from_checkpoint(tmp_path)


def test_config_and_hub_import_no_torch():
    code = (
        "import sys, minimal_vllm.model.config, minimal_vllm.model.generation_config, "
        "minimal_vllm.model.hub; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- configs that are wrong in any place ---------------------------------------------------------

WRONG = (None, True, -1, 0, 1.5, math.inf, math.nan, "x", ["x"], [[1]], {"a": 1}, {"a": {"b": []}})
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "int", "strategy": "channel", "symmetric": True},
            "input_activations": None,
        }
    },
    "transform_config": {"config_groups": {"R1": {"apply": [{"location": "weight_input"}]}}},
    "ignore": ["lm_head", "re:.*mlp"],
}
FP8 = {"quant_method": "fp8", "modules_to_not_convert": ["a"], "weight_block_size": [128, 128]}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "gptq"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "modules_to_not_convert": ["a"]}
WHOLE = {
    **FAMILIES,
    **QUANTIZED,
    **{
        each["quant_method"]: {**FAMILIES["llama"], "quantization_config": each}
        for each in (COMPRESSED, FP8, GPTQ, AWQ)
    },
}


def with_other_values(value):
    """Yield copies of a JSON value in which one place has a wrong value."""
    yield from WRONG
    if isinstance(value, dict):
        for key in value:
            yield from ({**value, key: other} for other in with_other_values(value[key]))
    elif isinstance(value, list) and value:
        yield from ([other, *value[1:]] for other in with_other_values(value[0]))


@pytest.mark.parametrize("name", WHOLE)
def test_a_wrong_value_in_any_place_is_refused_in_one_line(name):
    ModelConfig.from_dict(WHOLE[name])
    for raw in with_other_values(WHOLE[name]):
        if not isinstance(raw, dict):
            continue
        try:
            config, complaint = ModelConfig.from_dict(raw), ""
        except ValueError as error:
            config, complaint = None, str(error)
        assert "\n" not in complaint
        for rope in {config.rope, config.local_rope or config.rope} if config else ():
            assert rope_table(rope, config.head_dim, 2).isfinite().all()
