"""Small timelines calculated by hand: a step takes one second, plus a tenth for each token."""

from array import array
from itertools import pairwise

import pytest

from minimal_vllm.trace.step_record import Listener, RequestRecord
from minimal_vllm_lab.sim.cost_model import LinearCostModel
from minimal_vllm_lab.sim.job import Job
from minimal_vllm_lab.stats.latency import distribution
from minimal_vllm_lab.stats.slo import Slo
from tests.lab.sim.simulated import make_jobs, make_replica, run

COSTS = LinearCostModel(
    per_step=1.0, per_request=0, per_token=0.1, per_sample=0, per_kv_token=0, per_attended=0
)


def job(arrival, num_input, num_output, follow_up=None):
    return Job(arrival, array("i", range(num_input)), num_output, follow_up)


def serve(*jobs, observers=(), routing="round-robin", count=1, slo=None, **config):
    replicas = [
        make_replica(observers=observers, costs=COSTS, enable_prefix_caching=False, **config)
        for _ in range(count)
    ]
    return run(iter(jobs), replicas, routing, slo)


def test_the_latencies_of_a_request_alone():
    report = serve(job(5.0, 10, 3))
    first, each = 1 + 10 * 0.1, 1 + 0.1
    assert report.latencies["mean_ttft_ms"] == pytest.approx(1000 * first)
    assert report.latencies["mean_tpot_ms"] == pytest.approx(1000 * each)
    assert report.latencies["mean_itl_ms"] == pytest.approx(1000 * each, rel=0.002)
    assert report.latencies["mean_e2el_ms"] == pytest.approx(1000 * (first + 2 * each))
    assert report.duration == pytest.approx(5.0 + first + 2 * each)
    assert (report.num_steps, report.completed) == (3, 1)
    assert report.busy == pytest.approx((first + 2 * each) / report.duration)


def test_requests_that_arrive_at_the_same_time_are_in_the_same_step():
    report = serve(job(0.0, 4, 1), job(0.0, 6, 1))
    assert report.num_steps == 1
    assert report.latencies["p99_ttft_ms"] == pytest.approx(1000 * (1 + 10 * 0.1))


def test_a_request_that_arrives_during_a_step_waits_for_its_end():
    report = serve(job(0.0, 10, 1), job(0.5, 10, 1))
    assert report.num_steps == 2
    waited = 2.0 - 0.5
    assert report.latencies["mean_ttft_ms"] == pytest.approx(1000 * (2.0 + waited + 2.0) / 2)


def test_a_request_that_arrives_as_a_step_ends_is_in_the_next():
    report = serve(job(0.0, 10, 2), job(2.0, 9, 1))
    assert report.num_steps == 2
    assert report.latencies["mean_e2el_ms"] == pytest.approx(1000 * (2 * (1 + 1.0) + 2.0) / 2)


def test_a_request_that_arrives_while_all_others_sleep_wakes_them_at_the_next_step():
    first = 1 + 17 * 0.1
    report = serve(job(0.0, 17, 14), job(first + 2.5 * 1.1, 10, 1))
    assert report.num_steps == 14
    assert report.duration == pytest.approx(first + 13 * 1.1 + 10 * 0.1)
    later = 0.5 * 1.1 + 1 + 11 * 0.1  # the rest of the third step, then one step for both
    assert report.latencies["mean_ttft_ms"] == pytest.approx(1000 * (first + later) / 2)


def test_the_next_turn_arrives_after_the_last_answer():
    turns = []

    def follow_up(said, now):
        turns.append((len(said), now))
        return job(now + 3.0, len(said) + 5, 1)

    report = serve(job(0.0, 10, 2, follow_up))
    answered = 2.0 + 1.1
    assert turns == [(12, pytest.approx(answered))]
    assert report.duration == pytest.approx(answered + 3.0 + 1 + 17 * 0.1)
    assert report.completed == 2


def test_a_request_too_long_for_the_engine_is_rejected_without_harm_to_others():
    report = serve(job(0.0, 300, 1), job(0.0, 10, 1), slo=Slo())
    assert (report.refused, report.completed) == (1, 1)
    assert report.attainment == 0.5


def test_replicas_work_in_parallel():
    report = serve(job(0.0, 10, 1), job(0.0, 10, 1), count=2)
    assert report.duration == pytest.approx(2.0)
    assert report.busy == pytest.approx(1.0)


def test_the_gap_caused_by_a_preemption_is_counted_in_full():
    """Compare the records of each step with the totals that the simulation keeps."""
    records = []
    replica = make_replica(
        num_blocks=20, observers=[records.append], max_model_len=256, block_size=16
    )
    report = run(make_jobs(seed=3, count=12, longest=120), [replica])
    assert report.num_preemptions > 0
    last, gaps = {}, []
    for record in records:
        now = record.started + record.run_seconds
        for entry in record.scheduled:
            if entry.sampled_tokens:
                if entry.request_id in last:
                    gaps.append(now - last[entry.request_id])
                last[entry.request_id] = now
    found = {key: report.latencies[key] for key in distribution("itl", gaps, [99])}
    assert found == pytest.approx(distribution("itl", gaps, [99]), rel=0.003)


def test_simulated_records_are_contiguous():
    records = []
    serve(job(0.0, 100, 20), job(3.0, 100, 20), observers=[records.append])
    assert [record.step for record in records] == list(range(len(records)))
    for before, after in pairwise(records):
        assert after.started == before.started + before.run_seconds
    assert {reason for record in records for _, reason in record.finished} == {"length"}


class Everything(list, Listener):
    """Listener that keeps all records."""

    __call__ = list.append


def test_a_request_that_arrives_during_a_step_is_recorded_at_that_time():
    records = Everything()
    serve(job(0.0, 10, 3), job(0.5, 10, 1), job(50.0, 10, 1), observers=[records])
    came = [record.arrived for record in records if isinstance(record, RequestRecord)]
    assert came == [0.0, 0.5, 50.0]
    first_step = next(record for record in records if not isinstance(record, RequestRecord))
    assert (first_step.started, first_step.run_seconds) == (0.0, pytest.approx(2.0))
