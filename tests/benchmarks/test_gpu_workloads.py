"""The workloads are those that other engines were measured with; they run where there is a GPU."""

import pytest

from benchmarks import gpu_workloads
from benchmarks.gpu_workloads import WORKLOADS, build, run_once

EXPECTED = {  # requests, prompt tokens, output tokens
    "mixed256": (256, 142_827, 133_966),
    "latency1": (1, 128, 512),
    "prefix256": (256, 256 * 2112, 256 * 64),
    "long32": (32, 32 * 8192, 32 * 256),
    "prefill64": (64, 64 * 4096, 64),
}


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_is_the_one_that_the_others_times_belong_to(name):
    workload = WORKLOADS[name]()
    prompt_tokens = sum(len(prompt) for prompt, _ in workload)
    assert (len(workload), prompt_tokens, sum(out for _, out in workload)) == EXPECTED[name]


def test_the_requests_of_prefix256_share_what_they_should():
    prompts = [prompt for prompt, _ in WORKLOADS["prefix256"]()]
    assert len({tuple(prompt[:2048]) for prompt in prompts}) == 1
    assert len({tuple(prompt[:2064]) for prompt in prompts}) == len(prompts)


@pytest.mark.gpu
def test_a_workload_runs_and_gives_all_its_tokens(monkeypatch):
    tiny = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 8,
            "intermediate_size": 64, "tie_word_embeddings": True}  # fmt: skip
    monkeypatch.setitem(gpu_workloads.SHAPES, "tiny", tiny)
    llm = build("tiny", {"num_gpu_blocks_override": 1000, "max_model_len": 1024})
    assert run_once(llm, [([1, 2, 3], 5), ([4], 1)], temperature=0.6) > 0
