import pytest

from minimal_vllm_lab.sim.fixed_workloads import FIXED_WORKLOADS


@pytest.mark.parametrize(
    ("name", "count", "num_input", "num_output"),
    [
        ("mixed256", 256, 142_827, 133_966),  # as printed by nano-vllm's bench.py
        ("prefix256", 256, 256 * 2112, 256 * 64),
        ("latency1", 1, 128, 512),
        ("long32", 32, 32 * 8192, 32 * 256),
        ("prefill64", 64, 64 * 4096, 64),
    ],
)
def test_a_workload_is_the_one_that_other_engines_were_measured_with(
    name, count, num_input, num_output
):
    requests = FIXED_WORKLOADS[name]()
    assert len(requests) == count
    assert sum(len(prompt) for prompt, _ in requests) == num_input
    assert sum(output for _, output in requests) == num_output
    assert FIXED_WORKLOADS[name]() == requests


def test_requests_share_only_the_prefix():
    prompts = [prompt for prompt, _ in FIXED_WORKLOADS["prefix256"]()]
    assert len({tuple(prompt[:2048]) for prompt in prompts}) == 1
    assert len({tuple(prompt[:2049]) for prompt in prompts}) > 200
