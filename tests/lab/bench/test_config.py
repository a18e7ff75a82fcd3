import math

import pytest
from pydantic import ValidationError

from minimal_vllm_lab.bench.config import Load, Workload
from minimal_vllm_lab.stats.slo import Slo


def test_the_url_is_made_of_host_and_port_or_given_as_a_whole():
    assert Load().url == "http://127.0.0.1:8000"
    assert Load(host="::1", port=80).url == "http://[::1]:80"
    assert Load(base_url="https://example.com/").url == "https://example.com"


def test_the_endpoint_determines_whether_requests_are_chats():
    assert not Load().is_chat
    assert Load(endpoint="/openai/v1/chat/completions").is_chat


def test_without_a_rate_all_requests_are_sent_at_once():
    assert Load().rates == [math.inf]
    assert Load(request_rate=[1, 2.5]).rates == [1, 2.5]


def test_limits_and_percentiles_are_parsed_to_numbers():
    load = Load(goodput=["ttft:100", "e2el:2.5"], metric_percentiles="50,99.9")
    assert load.slo == Slo(ttft=100, e2el=2.5)
    assert load.percentiles == [50, 99.9]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"goodput": ["ttft:9", "itl:5"]}, "such as ttft:500,tpot:50, not 'ttft:9 itl:5'"),
        ({"goodput": ["ttft:nan"]}, "such as ttft:500,tpot:50, not 'ttft:nan'"),
        ({"percentile_metrics": "ttft,speed"}, "unknown metric 'speed'"),
        (
            {"metric_percentiles": "50,101"},
            "must be numbers from 0 to 100, such as 50,90,99, not '50,101'",
        ),
        ({"metric_percentiles": ""}, "such as 50,90,99"),
        ({"endpoint": "/v1/responses"}, "must end in /completions"),
        ({"request_rate": [0]}, "greater than 0"),
        ({"burstiness": 0}, "greater than 0"),
        ({"max_concurrency": 0}, "greater than or equal to 1"),
    ],
)
def test_a_bad_value_is_rejected_with_the_reason(fields, complaint):
    with pytest.raises(ValidationError) as caught:
        Load(**fields)
    assert complaint in str(caught.value)


def test_a_range_that_would_reach_0_is_rejected():
    with pytest.raises(ValidationError, match="less than 1"):
        Workload(random_range_ratio=1)
