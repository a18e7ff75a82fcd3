"""Quantized checkpoints, made by the tools that people publish them with: see make_fixtures.py."""

import json
from pathlib import Path

import pytest
import torch
from checkpoints import random_weights, write_json, write_weights
from safetensors.torch import load_file

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.engine.backends import choose_modules
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.loader import load_model
from minimal_vllm.model.quantization.weight import QuantizedWeight
from minimal_vllm.model.weight_bytes import weight_bytes

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = sorted(path.stem for path in FIXTURES.glob("*.json"))
PROMPT = list(range(5, 45, 3))
CPU = torch.device("cpu")


def read_fixture(name):
    """Return a fixture's config, the tensors of its checkpoint, and what is expected of them."""
    config = json.loads((FIXTURES / f"{name}.json").read_text())
    stored = load_file(FIXTURES / f"{name}.safetensors")
    expected = {kind: stored.pop(f"expected.{kind}") for kind in ("tokens", "logits")}
    weights = random_weights(config)
    plain = {path: each for path, each in weights.items() if not path.endswith("_proj.weight")}
    return config, {**plain, **stored}, expected


def write_fixture(folder, config, tensors):
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", config)
    write_weights(folder, tensors, shards=3)  # no matrix has all of its tensors in one shard
    return folder


def load(folder, dtype=torch.float32):
    config = ModelConfig.from_checkpoint(folder)
    modules = choose_modules("tiled", config.quantization, dtype, CPU)
    return config, load_model(folder, config, dtype, CPU, modules=modules)


def test_every_format_has_a_fixture():
    assert len(NAMES) == 10


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_are_those_of_the_matrices_that_the_tool_dequantizes(tmp_path, name):
    config, tensors, expected = read_fixture(name)
    folder = write_fixture(tmp_path, config, tensors)
    llm = LLM(str(folder), skip_tokenizer_init=True, num_gpu_blocks_override=16, dtype="float32")
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=None)
    (output,) = llm.generate([{"prompt_token_ids": PROMPT}], params, use_tqdm=False)
    assert list(output.outputs[0].token_ids) == expected["tokens"].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_as_small_as_promised(tmp_path, name):
    config, tensors, _ = read_fixture(name)
    model_config, model = load(write_fixture(tmp_path, config, tensors), torch.bfloat16)
    held = sum(each.numel() * each.itemsize for each in model.parameters())
    order = sum(
        each.order.numel() * 4
        for each in model.modules()
        if isinstance(each, QuantizedWeight) and getattr(each, "order", None) is not None
    )
    promised = weight_bytes(model_config, "bfloat16")
    assert promised <= held <= promised + order + 256  # scales of blocks that are cut in parts
    assert held < 0.75 * 2 * model_config.num_parameters


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_tensor_and_a_wrong_shape_are_named(tmp_path, name):
    config, tensors, _ = read_fixture(name)
    path = "model.layers.0.mlp.down_proj."
    scale = next(
        each
        for each in tensors
        if each.startswith(path) and each.endswith(("weight_scale", "scale_inv", ".scales"))
    )
    missing = write_fixture(
        tmp_path / "a", config, {k: v for k, v in tensors.items() if k != scale}
    )
    with pytest.raises(ValueError, match=rf"missing: {path}(weight_)?scales?$"):
        load(missing)
    misfit = write_fixture(tmp_path / "b", config, {**tensors, scale: torch.ones(3, 3)})
    with pytest.raises(ValueError, match=r"misfitting: model\S*scales? is \[3, 3\], must be"):
        load(misfit)


def test_a_bias_that_the_model_lacks_may_be_stored_if_it_is_zero(tmp_path):
    config, tensors, _ = read_fixture("gptq")
    name = "model.layers.0.mlp.up_proj.bias"
    zeros = torch.zeros(config["intermediate_size"])
    load(write_fixture(tmp_path / "zeros", config, {**tensors, name: zeros}))
    with pytest.raises(ValueError, match=f"unexpected: {name}$"):
        load(write_fixture(tmp_path / "ones", config, {**tensors, name: zeros + 1}))


def test_fused_projections_with_different_orders_are_refused(tmp_path):
    config, tensors, _ = read_fixture("gptq-ordered")
    name = "model.layers.0.self_attn.k_proj.g_idx"
    tensors[name] = tensors[name].flip(0)
    with pytest.raises(
        ValueError, match=r"q_proj, k_proj, v_proj are computed .* without desc_act"
    ):
        load(write_fixture(tmp_path, config, tensors))


def test_symmetric_zero_points_must_be_symmetric(tmp_path):
    config, tensors, _ = read_fixture("gptq")
    tensors["model.layers.0.mlp.up_proj.qzeros"] += 1
    with pytest.raises(ValueError, match=r"up_proj: config\.json says sym"):
        load(write_fixture(tmp_path, config, tensors))


def test_a_group_that_does_not_divide_the_columns_is_named(tmp_path):
    config, tensors, _ = read_fixture("awq")
    config["quantization_config"]["group_size"] = 128
    config["intermediate_size"] = 96
    with pytest.raises(ValueError, match="down_proj has 96 columns, which must be a multiple"):
        load(write_fixture(tmp_path, config, tensors))


# ---- scales of keys and values ------------------------------------------------------------------


def logprobs(folder, kv_cache_dtype="fp8"):
    llm = LLM(
        str(folder),
        skip_tokenizer_init=True,
        num_gpu_blocks_override=16,
        dtype="float32",
        kv_cache_dtype=kv_cache_dtype,
    )
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=1)
    (output,) = llm.generate([{"prompt_token_ids": PROMPT}], params, use_tqdm=False)
    return [
        {token: each.logprob for token, each in one.items()} for one in output.outputs[0].logprobs
    ]


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("name", ["ct-fp8-tensor", "ct-int4"])
def test_keys_and_values_that_are_too_large_are_scaled_as_calibrated(tmp_path, name, normed):
    config, tensors, _ = read_fixture(name)
    if normed:  # the same projections, in an architecture with norms of queries and keys
        config |= {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
        for kind in "qk":
            tensors[f"model.layers.0.self_attn.{kind}_norm.weight"] = torch.ones(32)
    expected = logprobs(write_fixture(tmp_path / "small", config, tensors))
    prefix = "model.layers.0.self_attn."
    for kind, factor in {"q": 1 / 1024, "k": 1024, "v": 1024, "o": 1 / 1024}.items():
        if normed and kind in "qk":
            tensors[f"{prefix}{kind}_norm.weight"] *= factor
        else:
            tensors[f"{prefix}{kind}_proj.weight_scale"] *= factor
    unscaled = logprobs(write_fixture(tmp_path / "unscaled", config, tensors))
    assert unscaled != expected, "FP8's range cuts them off"
    tensors |= {f"{prefix}k_scale": torch.tensor([700.0]), f"{prefix}v_scale": torch.tensor(1024.0)}
    scaled = write_fixture(tmp_path / "scaled", config, tensors)
    assert logprobs(scaled) == expected
    assert logprobs(scaled, "auto") == logprobs(tmp_path / "small", "auto")
    tensors[f"{prefix}k_scale"] = torch.tensor([float("nan")])
    with pytest.raises(ValueError, match=r"self_attn\.k_scale must be one positive number"):
        logprobs(write_fixture(tmp_path / "bad", config, tensors))
