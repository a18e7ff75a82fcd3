"""The text model of a checkpoint of several modalities."""

import json

import pytest
from checkpoints import FAMILIES

from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.multimodal import text_tensor_name

GEMMA = FAMILIES["gemma3-text-part"]


def windows(config):
    return {layer.window for layer in config.layers}


def test_the_text_model_says_what_it_is_a_part_of():
    config = ModelConfig.from_dict(GEMMA)
    assert config.architecture == "Gemma3ForCausalLM"
    assert config.part_of == "Gemma3ForConditionalGeneration"
    assert ModelConfig.from_dict(FAMILIES["gemma3"]).part_of is None


def test_what_stands_beside_the_text_config_overrides_it():
    text = GEMMA["text_config"] | {"tie_word_embeddings": True, "torch_dtype": "float16"}
    outer = {"tie_word_embeddings": False, "torch_dtype": "bfloat16", "eos_token_id": [3, 4]}
    config = ModelConfig.from_dict(GEMMA | outer | {"text_config": text})
    assert config.tie_word_embeddings is False
    assert config.dtype == "bfloat16"
    assert config.eos_token_ids == (3, 4)


@pytest.mark.parametrize("text_config", [None, [], "gemma3_text"])
def test_a_missing_text_config_is_named(text_config):
    with pytest.raises(ValueError, match=r"text_config is .*text model of Gemma3ForConditional"):
        ModelConfig.from_dict(GEMMA | {"text_config": text_config})


def test_an_unknown_text_model_is_refused_by_name():
    text = GEMMA["text_config"] | {"model_type": "gemma9_text"}
    with pytest.raises(ValueError, match=r"'model_type' is 'gemma9_text'.*gemma3_text"):
        ModelConfig.from_dict(GEMMA | {"text_config": text})


@pytest.mark.parametrize(
    "overrides", [{"sliding_window": 5}, {"text_config": {"sliding_window": 5}}]
)
def test_overrides_reach_the_text_model(tmp_path, overrides):
    (tmp_path / "config.json").write_text(json.dumps(GEMMA))
    assert windows(ModelConfig.from_checkpoint(tmp_path)) == {7, None}
    assert windows(ModelConfig.from_checkpoint(tmp_path, overrides)) == {5, None}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.language_model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("language_model.model.norm.weight", "model.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("model.vision_tower.patch_embed.weight", None),
        ("vision_tower.transformer.layers.0.attention.q_proj.weight", None),
        ("multi_modal_projector.linear_1.weight", None),
        ("model.multi_modal_projector.patch_merger.merging_layer.weight", None),
        ("something_else.weight", "something_else.weight"),  # the loader will complain
    ],
)
def test_only_tensors_of_other_modalities_have_no_name(name, expected):
    assert text_tensor_name(name) == expected
