from dataclasses import replace

import pytest

from minimal_vllm.trace.writer import TraceWriter
from minimal_vllm_lab.sim.cost_model import LinearCostModel
from minimal_vllm_lab.sim.fit import fit_cost_model, read_cost_model
from tests.lab.sim.simulated import COSTS, make_jobs, make_replica, run
from tests.trace.records import FACTS


def record(costs=COSTS, num_jobs=30):
    records = []
    replica = make_replica(observers=[records.append], costs=costs)
    run(make_jobs(seed=0, count=num_jobs), [replica])
    return records


def test_the_fit_finds_the_costs_that_made_the_times():
    fitted = fit_cost_model(record())
    assert vars(fitted) == pytest.approx(vars(COSTS), rel=1e-5)


def test_a_free_part_of_the_load_is_fitted_as_free():
    costs = LinearCostModel(
        per_step=1e-3, per_request=0, per_token=1e-5, per_sample=0, per_kv_token=0, per_attended=0
    )
    fitted = fit_cost_model(record(costs))
    assert vars(fitted) == pytest.approx(vars(costs), rel=1e-6, abs=1e-9)


def test_no_cost_is_negative_even_if_that_would_fit_better():
    # The more requests, the faster.
    records = [
        replace(each, started=float(each.step), run_seconds=1 / (1 + len(each.scheduled)))
        for each in record()
    ]
    fitted = fit_cost_model(records)
    assert min(vars(fitted).values()) >= 0
    assert fitted.per_step > 0


def test_a_trace_and_its_records_give_the_same_fit(tmp_path):
    path = tmp_path / "trace.jsonl"
    writer = TraceWriter(path, 10**8)
    writer.begin(FACTS, None, started=0.0)
    run(make_jobs(seed=0), [make_replica(observers=[writer])])
    writer.close()
    assert vars(read_cost_model(path)) == pytest.approx(vars(COSTS), rel=1e-5)


def test_time_in_which_the_previous_step_still_ran_is_not_counted_twice():
    ahead = 0.5e-3  # how long before the previous step's end each step but the first is planned
    first, *others = record()
    overlapping = [
        replace(each, started=each.started - ahead, schedule_seconds=ahead) for each in others
    ]
    fitted = fit_cost_model([first, *overlapping])
    assert vars(fitted) == pytest.approx(vars(COSTS), rel=1e-5)


def test_too_few_steps_are_rejected():
    with pytest.raises(ValueError, match="at least 12 steps"):
        fit_cost_model(record()[:11])
