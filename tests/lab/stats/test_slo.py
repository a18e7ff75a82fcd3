import pytest

from minimal_vllm_lab.stats.slo import Slo


@pytest.mark.parametrize("text", ["ttft:500,tpot:50", "ttft:500 tpot:50", " tpot:50.0, ttft:5e2"])
def test_limits_are_read_in_milliseconds(text):
    assert Slo.parse(text) == Slo(ttft=500, tpot=50)


def test_all_limits_must_be_met():
    slo = Slo(ttft=500, e2el=2000)
    assert slo.is_met(0.5, 1000, 2)
    assert not slo.is_met(0.501, 0.001, 1)
    assert not slo.is_met(0.5, 0.001, 2.001)


@pytest.mark.parametrize(
    "text",
    ["", "ttft", "ttft:", "ttft:x", "speed:3", "ttft:-1", "ttft:0", "ttft:1,ttft:2", "a:b:c"],
)
def test_text_that_is_no_objective_is_rejected(text):
    with pytest.raises(ValueError, match="ttft:500,tpot:50"):
        Slo.parse(text)
