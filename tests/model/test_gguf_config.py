"""A GGUF file's metadata means what the config.json it was made from means."""

import math
from dataclasses import replace

import pytest
import torch
from checkpoints import FAMILIES
from gguf import GGMLQuantizationType as Type
from gguf_files import tokenizer_metadata, write_gguf

from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.generation_config import GenerationConfig
from minimal_vllm.model.rope import rope_frequencies
from minimal_vllm.model.rope_config import FrequencyFactors, Llama3Scaling

LLAMA = FAMILIES["llama"]


def expected_of(config):
    """Both tokens that end a text: a config.json names one of them."""
    return replace(ModelConfig.from_dict(config), eos_token_ids=(256, 258))


def read(tmp_path, config=LLAMA, kind=Type.F32, **options):
    write_gguf(tmp_path / "model.gguf", config, kind, **options)
    return ModelConfig.from_checkpoint(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    "family", ["llama", "llama-mha-tied", "llama-mqa-biases", "qwen2", "qwen3"]
)
def test_it_says_what_the_config_json_says(tmp_path, family):
    assert read(tmp_path, FAMILIES[family]) == expected_of(FAMILIES[family])


@pytest.mark.parametrize(
    ("kind", "dtype"), [(Type.F32, "float32"), (Type.F16, "bfloat16"), (Type.Q8_0, "bfloat16")]
)
def test_quantized_models_run_in_bfloat16(tmp_path, kind, dtype):
    assert read(tmp_path, kind=kind).dtype == dtype


def llama3_factors(head_dim, theta, scaling):
    """What llama.cpp's converter writes into ``rope_freqs.weight``."""
    factors = []
    for pair in range(head_dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * pair / head_dim)
        turns = scaling.original_max_position_embeddings / wavelength
        if turns > scaling.high_freq_factor:
            factors.append(1.0)
        elif turns < scaling.low_freq_factor:
            factors.append(scaling.factor)
        else:
            spread = scaling.high_freq_factor - scaling.low_freq_factor
            smooth = (turns - scaling.low_freq_factor) / spread
            factors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return torch.tensor(factors)


def test_llama_3_s_rotary_factors_give_its_frequencies(tmp_path):
    expected = ModelConfig.from_dict(FAMILIES["llama3-rope"])
    scaling = expected.rope.scaling
    assert isinstance(scaling, Llama3Scaling)
    factors = llama3_factors(expected.head_dim, expected.rope.theta, scaling)
    extra = {"rope_freqs.weight": factors}
    config = read(tmp_path, FAMILIES["llama3-rope"], extra_tensors=extra)
    assert isinstance(config.rope.scaling, FrequencyFactors)
    assert config.max_positions == expected.max_positions
    torch.testing.assert_close(
        rope_frequencies(config.rope, config.head_dim),
        rope_frequencies(expected.rope, expected.head_dim),
    )


def test_rotary_factors_must_fit_the_heads(tmp_path):
    extra = {"rope_freqs.weight": torch.ones(3)}
    with pytest.raises(ValueError, match=r"rope_freqs\.weight must hold \d+ positive numbers"):
        read(tmp_path, extra_tensors=extra)


@pytest.mark.parametrize(
    ("metadata", "scaling"),
    [
        (
            {"qwen2.rope.scaling.type": "linear", "qwen2.rope.scaling.factor": 4.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
        (
            {
                "qwen2.rope.scaling.type": "yarn",
                "qwen2.rope.scaling.factor": 4.0,
                "qwen2.rope.scaling.original_context_length": 128,
                "qwen2.rope.scaling.yarn_beta_fast": 16.0,
            },
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 128,
                "beta_fast": 16.0,
            },
        ),
        ({"qwen2.rope.scaling.type": "none", "qwen2.rope.scaling.finetuned": True}, None),
    ],
)
def test_longer_contexts_are_scaled_as_the_file_says(tmp_path, metadata, scaling):
    config = read(tmp_path, FAMILIES["qwen2"], metadata=metadata)
    assert config == expected_of(FAMILIES["qwen2"] | {"rope_scaling": scaling})


def test_every_token_that_ends_a_turn_ends_a_text(tmp_path):
    """A file names one; the other that its chat models use is known by its text."""
    tokens = tokenizer_metadata()["tokenizer.ggml.tokens"]
    end_of_turn, end_of_text = tokens.index("<|im_end|>"), tokens.index("<|endoftext|>")
    tokenizer = tokenizer_metadata(**{"tokenizer.ggml.eos_token_id": end_of_turn})
    config = read(tmp_path, tokenizer=tokenizer)
    assert config.eos_token_ids == (end_of_turn, end_of_text)


def test_recommended_sampling_is_the_generation_config(tmp_path):
    config = read(tmp_path, metadata={"general.sampling.temp": 0.6, "general.sampling.top_k": 20})
    found = GenerationConfig.from_checkpoint(tmp_path / "model.gguf", config)
    assert found.sampling == {"temperature": 0.6, "top_k": 20}
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.1}')
    assert GenerationConfig.from_checkpoint(tmp_path, config).sampling == {"temperature": 0.1}


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ({"llama.expert_count": 8}, r"llama\.expert_count = 8 is not supported"),
        ({"llama.attention.sliding_window": 7}, r"llama\.attention\.sliding_window = 7"),
        ({"llama.attention.causal": False}, None),
        ({"llama.expert_count": 0}, None),
        ({"llama.rope.scaling.attn_factor": 1.0}, None),
        ({"llama.rope.scaling.attn_factor": 2.0}, "attn_factor = 2.0 is not supported"),
        ({"llama.rope.scaling.type": "longrope"}, "'longrope' is not supported"),
        ({"llama.attention.value_length": 4}, "value_length is 4, but only the head size, 8"),
    ],
)
def test_what_would_change_the_output_is_refused(tmp_path, metadata, complaint):
    if complaint is None:
        read(tmp_path, metadata=metadata)
        return
    with pytest.raises(ValueError, match=complaint) as error:
        read(tmp_path, metadata=metadata)
    assert str(error.value).startswith(str(tmp_path / "model.gguf"))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"num_hidden_layers": 4_000_000_000}, "block_count is 4000000000, but the tensors have 3"),
        ({"hidden_size": 64}, "embedding_length is 64, but the tensors have 32"),
        ({"intermediate_size": 65}, "feed_forward_length is 65, but the tensors have 64"),
        ({"num_attention_heads": 3}, "num_attention_heads"),
        (
            {"max_position_embeddings": 1 << 31},
            "context_length is 2,147,483,648: the file is damaged",
        ),
        ({"max_position_embeddings": 0}, "context_length is 0, but must be a positive integer"),
    ],
)
def test_metadata_that_the_tensors_contradict_is_refused(tmp_path, change, complaint):
    """Before anything is allocated by it."""
    from checkpoints import random_weights

    weights = random_weights(LLAMA)
    if "num_attention_heads" in change:  # as they are, for the permutation
        weights = {name: each for name, each in weights.items() if "q_proj" not in name}
    with pytest.raises(ValueError, match=complaint):
        read(tmp_path, LLAMA | change, weights=weights)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("eos_token_id", [1, 2], "must be token ids"),
        (
            "tokens",
            ["a"] * 400,
            "tokenizer has 400 tokens, but token_embd.weight has only 288 rows",
        ),
    ],
)
def test_a_tokenizer_that_does_not_fit_the_model_is_refused(tmp_path, key, value, complaint):
    tokenizer = tokenizer_metadata(**{f"tokenizer.ggml.{key}": value})
    with pytest.raises(ValueError, match=complaint):
        read(tmp_path, tokenizer=tokenizer)


def test_an_unknown_architecture_is_named(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, LLAMA)
    path.write_bytes(path.read_bytes().replace(b"llama", b"gemma"))
    with pytest.raises(ValueError, match=r"is 'gemma', but must be one of llama, qwen2, qwen3"):
        ModelConfig.from_checkpoint(path)
