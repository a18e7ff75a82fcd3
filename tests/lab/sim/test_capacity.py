from dataclasses import dataclass, replace

import pytest

from minimal_vllm.config import EngineConfig
from minimal_vllm_lab.sim.capacity import MIN_SECONDS, PRECISION, bisect, find_rate
from minimal_vllm_lab.sim.config import (
    FleetConfig,
    SimulationConfig,
    SyntheticConfig,
    TrafficConfig,
)
from minimal_vllm_lab.sim.simulation import make_design
from minimal_vllm_lab.stats.slo import Slo

CONFIG = SimulationConfig(
    EngineConfig(model="qwen3-8b", max_num_seqs=16),
    FleetConfig(gpu="l4"),
    synthetic=SyntheticConfig(num_prompts=50, input_len=300, output_len=40),
)


@dataclass
class Outcome:
    attainment: float


@pytest.mark.parametrize("limit", [0.0042, 0.7, 1.0, 1.5, 777.0])
def test_the_found_rate_meets_the_objective_and_a_slightly_higher_one_does_not(limit):
    rate, outcome = bisect(lambda rate: Outcome(0.99 if rate <= limit else 0.98), 0.99)
    assert rate <= limit < rate * PRECISION**1.01
    assert outcome.attainment == 0.99


@pytest.mark.parametrize(
    ("attainment", "why"), [(0.0, "no request rate"), (1.0, "every request rate")]
)
def test_an_endless_search_stops_with_the_reason(attainment, why):
    with pytest.raises(ValueError, match=why):
        bisect(lambda rate: Outcome(attainment), 0.5)


def test_a_stricter_objective_is_met_at_a_lower_rate():
    design = make_design(CONFIG)
    slo = Slo(ttft=4000, tpot=150)
    rate, report = find_rate(design, CONFIG, slo, 0.9)
    assert report.attainment >= 0.9
    assert report.completed >= rate * MIN_SECONDS
    stricter, _ = find_rate(design, CONFIG, replace(slo, tpot=80), 0.9)
    assert stricter < rate


@pytest.mark.parametrize("traffic", [{"workload": "latency1"}, {"request_rate": 3}])
def test_no_rate_is_searched_for_a_workload_that_sets_its_own(traffic):
    config = replace(CONFIG, traffic=TrafficConfig(**traffic))
    with pytest.raises(ValueError, match="leave out"):
        find_rate(make_design(config), config, Slo(ttft=1), 0.9)
