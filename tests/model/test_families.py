"""Every option of an architecture is read, refused by name, or known to change nothing."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from checkpoints import FAMILIES
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from minimal_vllm.config import EngineConfig
from minimal_vllm.engine.sizing import choose_model_len
from minimal_vllm.model import registry
from minimal_vllm.model.config import ModelConfig

PUBLISHED = Path(__file__).parent / "published_configs"
TEXT_MODELS = {name: config for name, config in FAMILIES.items() if "text_config" not in config}
MODEL_TYPES = sorted({config["model_type"] for config in TEXT_MODELS.values()})

NO_EFFECT = {
    "attention_dropout",  # only in training
    "bos_token_id",  # the tokenizer's business
    "embd_pdrop",
    "initializer_range",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",  # splits products, without changing them
    "resid_pdrop",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "use_cache",
}
OTHER_VALUES = {
    "attn_logit_softcapping": 3.0,
    "attention_multiplier": 0.3,
    "embedding_multiplier": 7.0,
    "eos_token_id": 3,
    "final_logit_softcapping": 3.0,
    "head_dim": 32,
    "hidden_act": "relu",
    "hidden_activation": "relu",
    "hidden_size": 128,
    "intermediate_size": 80,
    "logits_scaling": 7.0,
    "max_position_embeddings": 1024,
    "max_window_layers": 2,
    "no_rope_layer_interval": 2,
    "no_rope_layers": [0, 0, 1, 1],
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "original_max_position_embeddings": 77,
    "query_pre_attn_scalar": 7,
    "residual_multiplier": 0.3,
    "rms_norm_eps": 0.1,
    "sliding_window": 3,
    "vocab_size": 300,
}


def other_value(config, field):
    match field:
        case "layer_types":
            return ["full_attention"] + ["sliding_attention"] * (config["num_hidden_layers"] - 1)
        case "rope_parameters":
            parameters = {"rope_type": "linear", "factor": 3.0, "rope_theta": 77.0}
            family = registry.FAMILIES[config["architectures"][0]]
            return {"full_attention": parameters} if family.local_theta else parameters
        case _ if field in OTHER_VALUES:
            return OTHER_VALUES[field]
    return not config.get(field, False)


def is_noticed(config, field):
    """Whether another value of the field gives another ModelConfig, or an error."""
    changed = {**config, field: other_value(config, field)}
    if field == "rope_parameters":
        changed.pop("rope_scaling", None)
    try:
        return ModelConfig.from_dict(changed) != ModelConfig.from_dict(config)
    except ValueError:
        return True


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_no_option_that_transformers_has_is_ignored(model_type):
    configs = [each for each in TEXT_MODELS.values() if each["model_type"] == model_type]
    configs += [
        {key: value for key, value in each.items() if key != "layer_types"} for each in configs
    ]
    common = {field.name for field in fields(PreTrainedConfig)}
    options = {field.name for field in fields(CONFIG_MAPPING[model_type])} - common - NO_EFFECT
    assert len(options) > 10
    ignored = {
        option for option in options if not any(is_noticed(config, option) for config in configs)
    }
    assert ignored == set()


def as_transformers_writes_it(config):
    """The config.json that transformers saves after it has read this one."""
    given = {key: value for key, value in config.items() if key != "model_type"}
    saved = AutoConfig.for_model(config["model_type"], **given).to_dict()
    return {**saved, "architectures": config["architectures"]}


REQUIRED = (
    "architectures",
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_what_a_config_leaves_out_is_what_transformers_assumes(model_type):
    full = next(each for each in TEXT_MODELS.values() if each["model_type"] == model_type)
    minimal = {key: full[key] for key in REQUIRED if key in full}
    assumed = as_transformers_writes_it(minimal | {"pad_token_id": None})
    expected, got = ModelConfig.from_dict(assumed), ModelConfig.from_dict(minimal)
    # End tokens that no file names are guesses: generation_config.json or the user names them.
    assert got == replace(expected, eos_token_ids=(), dtype=got.dtype)


# ---- LongRoPE -----------------------------------------------------------------------------------


def test_longrope_ends_where_its_rotation_would_change():
    config = ModelConfig.from_dict(TEXT_MODELS["phi4-longrope"])
    assert config.max_position_embeddings == 512
    assert choose_model_len(EngineConfig(model="phi"), config) == 256
    with pytest.raises(ValueError, match=r"only 256 positions .*rotated otherwise by its longrope"):
        choose_model_len(EngineConfig(model="phi", max_model_len=257), config)


def test_longrope_whose_rotation_never_changes_has_its_whole_length():
    raw = TEXT_MODELS["phi4-longrope"]
    scaling = raw["rope_scaling"] | {"long_factor": raw["rope_scaling"]["short_factor"]}
    assert ModelConfig.from_dict({**raw, "rope_scaling": scaling}).max_positions == 512


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"partial_rotary_factor": 0.5}, "'short_factor' has 6 numbers, but must have 4"),
        ({"partial_rotary_factor": 0.2}, "rotates 3 of a head's 16 dimensions"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5"),
        ({"rope_scaling": {"type": "su", "short_factor": [1]}}, "'long_factor' must be a list"),
    ],
)
def test_a_rotation_that_does_not_fit_the_heads_is_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        ModelConfig.from_dict({**TEXT_MODELS["phi4-longrope"], **changes})


# ---- published models ---------------------------------------------------------------------------

MODELS = {path.stem: json.loads(path.read_text()) for path in sorted(PUBLISHED.glob("*.json"))}


@pytest.mark.parametrize("name", MODELS)
def test_the_config_of_a_published_model_is_read_or_refused_with_a_reason(name):
    """``expected`` holds the number of parameters that its card gives, or the reason."""
    expected = MODELS[name]["expected"]
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            ModelConfig.from_dict(MODELS[name]["config"])
        return
    config = ModelConfig.from_dict(MODELS[name]["config"])
    assert config.num_parameters == expected["parameters"]
    assert config.max_positions == expected["positions"]
    assert sum(layer.window is not None for layer in config.layers) == expected["windows"]


def test_the_published_models_cover_every_family():
    read = [each["config"] for each in MODELS.values() if not isinstance(each["expected"], str)]
    assert {ModelConfig.from_dict(config).architecture for config in read} >= set(registry.FAMILIES)
