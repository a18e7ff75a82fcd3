"""The workloads are those that other engines were measured with; they run where there is a GPU."""

import pytest

from benchmarks.gpu_workloads import (
    build,
    chat,
    floor_seconds,
    make_workload,
    run_once,
    vllm_seconds,
)
from minimal_vllm_lab.sim.fixed_workloads import FIXED_WORKLOADS

TINY = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 10_001,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 64,
    "max_position_embeddings": 1024,
    "dtype": "bfloat16",
}


def test_the_requests_of_prefix256_share_what_they_should():
    prompts = [prompt for prompt, _ in make_workload("prefix256")[0]]
    assert len({tuple(prompt[:2048]) for prompt in prompts}) == 1
    assert len({tuple(prompt[:2064]) for prompt in prompts}) == len(prompts)


def test_chats_are_mostly_short_and_come_one_by_one():
    requests, arrivals = chat()
    lengths = sorted(len(prompt) for prompt, _ in requests)
    assert lengths[len(lengths) // 2] < 400 < 2000 < lengths[-1]
    assert arrivals == sorted(arrivals)
    assert 2 < arrivals[-1] < 10


@pytest.mark.parametrize("workload", FIXED_WORKLOADS)
@pytest.mark.parametrize("model", ["qwen3-0.6b", "qwen3-8b"])
def test_the_floor_is_below_what_vllm_needed(model, workload):
    theirs, requests = vllm_seconds()[model, workload], FIXED_WORKLOADS[workload]()
    assert theirs / 20 < floor_seconds(model, requests, "h200") < theirs
    assert floor_seconds(model, requests, "h200") < floor_seconds(model, requests, "h100")
    assert floor_seconds(model, requests, None) is None


@pytest.mark.gpu
@pytest.mark.parametrize("arrivals", [[0.0, 0.0], [0.0, 0.05]])
def test_a_workload_runs_and_gives_all_its_tokens(arrivals):
    llm = build(TINY, {"num_gpu_blocks_override": 1000, "max_model_len": 1024})
    seconds, ttfts = run_once(llm, [([1, 2, 3], 5), ([4], 1)], arrivals)
    assert 0 < max(ttfts) <= seconds
