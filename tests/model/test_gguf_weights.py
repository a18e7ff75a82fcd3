"""Greedy tokens of a GGUF file are those of the same weights in safetensors, bit for bit."""

import pytest
import torch
from checkpoints import FAMILIES, random_weights, write_json, write_tokenizer, write_weights
from gguf import GGMLQuantizationType as Type
from gguf_files import unpermute, write_gguf

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.formats.gguf_file import READABLE
from minimal_vllm.model import gguf_weights
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.loader import load_model

CPU = torch.device("cpu")
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 64}
"""K-quants are blocks of 256 numbers."""


def load(path, dtype=torch.float32):
    return load_model(path, ModelConfig.from_checkpoint(path), dtype, CPU)


def write_both(tmp_path, config, kind=Type.F32, **options):
    """A GGUF file, and a folder with the same weights in safetensors."""
    weights = write_gguf(tmp_path / "model.gguf", config, kind, **options)
    folder = tmp_path / "folder"
    folder.mkdir()
    write_json(folder / "config.json", config)
    write_weights(folder, weights)
    write_tokenizer(folder)
    return tmp_path / "model.gguf", folder


def assert_equal(found, expected):
    wanted = dict(expected.named_parameters())
    assert dict(found.named_parameters()).keys() == wanted.keys()
    for name, parameter in found.named_parameters():
        assert torch.equal(parameter, wanted[name]), name


@pytest.mark.parametrize("kind", READABLE)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_every_type_gives_the_weights_that_safetensors_give(tmp_path, family, kind):
    path, folder = write_both(tmp_path, FAMILIES[family] | WIDE, Type[kind])
    assert_equal(load(path), load(folder))


@pytest.mark.parametrize(
    "family", ["llama", "llama-mha-tied", "llama-mqa-biases", "mistral", "qwen2", "qwen3"]
)
def test_an_architecture_generates_what_its_safetensors_do(tmp_path, family):
    path, folder = write_both(tmp_path, FAMILIES[family])
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    texts = ["The rain", "and then, 12"]
    found, expected = (
        [output.outputs[0].token_ids for output in LLM(str(each)).generate(texts, params)]
        for each in (path, folder)
    )
    assert found == expected
    assert len(set(found[0])) > 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_are_rounded_once_to_the_engine_s_dtype(tmp_path, dtype):
    path, folder = write_both(tmp_path, FAMILIES["llama"], Type.Q8_0)
    assert_equal(load(path, dtype), load(folder, dtype))


@pytest.mark.parametrize("window", [1, 100, 32 * 8 * 3])
def test_windows_of_any_size_give_the_same_weights(tmp_path, monkeypatch, window):
    path, folder = write_both(tmp_path, FAMILIES["llama-mqa-biases"], Type.Q4_0)
    monkeypatch.setattr(gguf_weights, "WINDOW_NUMBERS", window)
    assert_equal(load(path), load(folder))


def test_rows_that_were_not_permuted_would_be_found_out(tmp_path):
    """The inverse test: a file whose heads are as Hugging Face has them gives other weights."""
    config = FAMILIES["llama"]
    path, folder = write_both(tmp_path, config)
    weights = random_weights(config)
    for name, weight in weights.items():
        if name.endswith("q_proj.weight"):
            weights[name] = unpermute(weight, config["num_attention_heads"])
    write_gguf(path, config, weights=weights)
    found, expected = (load(each).layers[0].self_attn.qkv_proj.weight for each in (path, folder))
    assert not torch.equal(found[:32], expected[:32])
    assert torch.equal(found[32:], expected[32:])


def test_a_file_of_another_model_is_refused_with_the_tensors_names(tmp_path):
    config = FAMILIES["llama"]
    weights = write_gguf(tmp_path / "a.gguf", config)
    del weights["model.layers.1.mlp.up_proj.weight"]
    write_gguf(
        tmp_path / "b.gguf",
        config,
        weights=weights,
        extra_tensors={"blk.1.ffn_up_exps.weight": torch.zeros(3, 3)},
    )
    with pytest.raises(ValueError, match=r"metadata.*missing: model\.layers\.1\.mlp\.up") as error:
        load(tmp_path / "b.gguf")
    assert "unexpected: blk.1.ffn_up_exps.weight" in str(error.value)
