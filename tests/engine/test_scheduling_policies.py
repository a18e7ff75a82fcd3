from array import array

import pytest

from minimal_vllm.engine.scheduler import SCHEDULING_POLICIES
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.request import Request


@pytest.mark.parametrize(
    ("policy", "expected"), [("fcfs", [0, 1, 2, 3]), ("priority", [2, 1, 3, 0])]
)
def test_who_is_served_first_is_the_policys_choice(policy, expected):
    requests = [
        Request(str(arrival), array("i", [1]), 1, SamplingParams(), arrival, priority=priority)
        for arrival, priority in [(3, 0), (1, 0), (2, -1), (0, 2)]
    ]
    served = sorted(requests, key=SCHEDULING_POLICIES[policy])
    assert [request.arrival for request in served] == expected
