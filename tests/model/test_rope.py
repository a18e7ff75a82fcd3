import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from minimal_vllm.model.registry import Family
from minimal_vllm.model.rope import Rotary, attention_factor, rope_frequencies, rotate
from minimal_vllm.model.rope_config import RopeConfig, read_ropes

HEAD_DIM = 64
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1 + pair / 10 for pair in range(HEAD_DIM // 2)],
    "long_factor": [2.0 + pair for pair in range(HEAD_DIM // 2)],
    "original_max_position_embeddings": 4096,
}
SCALINGS = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 2.5},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn of long training": {**YARN, "original_max_position_embeddings": 32768},
    "yarn without truncation": {**YARN, "truncate": False},
    "yarn with betas": {**YARN, "beta_fast": 20, "beta_slow": 2},
    "yarn with one ramp end": {**YARN, "beta_fast": 4.0, "beta_slow": 4.0, "truncate": False},
    "yarn with attention factor": {**YARN, "attention_factor": 1.25},
    "yarn with mscale": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
    "yarn with mscale alone": {**YARN, "mscale": 0.7},
    "yarn that stretches nothing": {**YARN, "factor": 1.0},
    "longrope": LONGROPE,
    "longrope with factor": {**LONGROPE, "factor": 3.0},
    "longrope with attention factor": {**LONGROPE, "attention_factor": 1.25},
}


def configs(scaling, theta=500000.0):
    length = 16384
    config = {"rope_theta": theta, "rope_scaling": scaling, "max_position_embeddings": length}
    ours, _ = read_ropes(config, Family())
    theirs = LlamaConfig(
        head_dim=HEAD_DIM,
        max_position_embeddings=length,
        rope_parameters={"rope_type": "default", "rope_theta": theta, **(scaling or {})},
    )
    return ours, theirs


@pytest.mark.parametrize("theta", [10000.0, 5e6])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_and_factor_equal_those_of_transformers(name, theta):
    ours, theirs = configs(SCALINGS[name], theta)
    rope_type = theirs.rope_parameters["rope_type"]
    if rope_type == "default":
        frequencies, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(theirs)
    else:
        frequencies, factor = ROPE_INIT_FUNCTIONS[rope_type](theirs)
    torch.testing.assert_close(rope_frequencies(ours, HEAD_DIM), frequencies, rtol=1e-6, atol=0)
    assert attention_factor(ours) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SCALINGS)
def test_rotated_heads_equal_those_of_transformers(name, dtype):
    ours, theirs = configs(SCALINGS[name])
    # LongRoPE has other factors for longer sequences, which are not supported.
    longest = 4096 if "longrope" in name else 16384
    positions = torch.tensor([0, 1, 2, 77, 1000, longest - 1])
    heads = torch.randn(len(positions), 5, HEAD_DIM, dtype=dtype)
    cos, sin = LlamaRotaryEmbedding(theirs)(heads, positions[None])
    expected, _ = apply_rotary_pos_emb(heads, heads, cos[0], sin[0])
    rotary = Rotary(ours, HEAD_DIM, 16384, torch.device("cpu"))
    rotated = rotate(heads, rotary.rotation(positions, dtype))
    # A frequency that differs by its last bit makes angles of 16,383 radians differ by 1e-3.
    tolerance = 2e-3 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(rotated, expected, rtol=0, atol=tolerance)


def test_queries_times_keys_depend_on_the_distance_only():
    rotary = Rotary(RopeConfig(10000.0), HEAD_DIM, 100, torch.device("cpu"))
    q, k = torch.randn(2, 1, 1, HEAD_DIM)

    def product(q_position, k_position):
        rotations = [
            rotary.rotation(torch.tensor([position]), torch.float32)
            for position in (q_position, k_position)
        ]
        return (rotate(q, rotations[0]) * rotate(k, rotations[1])).sum()

    torch.testing.assert_close(product(9, 4), product(95, 90), rtol=1e-4, atol=1e-4)
    assert abs(product(9, 4) - product(9, 5)) > 1e-2
