import pytest

from minimal_vllm_lab.bench.statistics import (
    Outcome,
    count_good,
    latency_result,
    serve_details,
    serve_result,
    throughput_result,
)
from minimal_vllm_lab.stats.latency import distribution
from minimal_vllm_lab.stats.slo import Slo


def outcome(start, *arrivals, tokens=None, error=""):
    """Return the outcome of a request of 10 tokens that started and got tokens at these times."""
    made = Outcome(10, start)
    for arrival in arrivals:
        made.note_token(arrival)
    made.output_tokens = len(arrivals) if tokens is None else tokens
    made.error = error
    return made


def test_a_request_s_times_are_from_its_start():
    made = outcome(100, 100.5, 101.0, 102.5)
    assert (made.ttft, made.itl, made.latency) == (0.5, [0.5, 1.5], 2.5)
    assert made.tpot == 1.0


def test_time_per_token_counts_tokens_and_not_events():
    assert outcome(0, 1.0, 3.0, tokens=5).tpot == 0.5
    assert outcome(0, 1.0).tpot is None


def test_a_good_request_meets_the_objective_and_a_failed_one_never_does():
    outcomes = [
        outcome(0, 0.1, 0.2),  # ttft 100 ms, tpot 100 ms
        outcome(0, 0.3, 0.4),
        outcome(0, 0.1, 0.9),
        outcome(0, 0.05),  # one token: no tpot
        outcome(0, 0.1, 0.2, error="lost"),
    ]
    assert count_good(outcomes, Slo(ttft=100)) == 3
    assert count_good(outcomes, Slo(ttft=100, tpot=100)) == 2
    assert count_good(outcomes, Slo(e2el=250)) == 2
    assert count_good(outcomes, Slo(ttft=99)) == 1


def test_a_serving_result_has_vllm_s_fields_without_failed_requests():
    outcomes = [
        outcome(0, 1.0, 2.0),
        outcome(2.5, 3.5, 3.75),
        outcome(0.5, 2.25),
        outcome(1.0, 9.0, tokens=7, error="lost"),
    ]
    result = serve_result(outcomes, 4.0, Slo(ttft=1000), ["ttft", "itl"], [99])
    assert result == {
        "duration": 4.0,
        "completed": 3,
        "failed": 1,
        "total_input_tokens": 30,
        "total_output_tokens": 5,
        "request_throughput": 0.75,
        "request_goodput": 0.5,
        "output_throughput": 1.25,
        "total_token_throughput": 8.75,
        "max_output_tokens_per_s": 2,  # in [2, 3): 2.0 and 2.25
        "max_concurrent_requests": 2,
        **distribution("ttft", [1.0, 1.0, 1.75], [99]),
        **distribution("itl", [1.0, 0.25], [99]),
    }


def test_without_an_objective_there_is_no_goodput():
    result = serve_result([outcome(0, 1.0)], 1.0, None, [], [])
    assert result["request_goodput"] is None


def test_a_request_that_starts_as_another_ends_is_not_concurrent_with_it():
    result = serve_result([outcome(0, 1.0), outcome(1.0, 2.0)], 2.0, None, [], [])
    assert result["max_concurrent_requests"] == 1


def test_a_run_in_which_all_failed_has_a_result():
    result = serve_result([outcome(0, error="lost")], 1.0, Slo(ttft=1), ["tpot"], [99])
    assert (result["completed"], result["failed"], result["request_goodput"]) == (0, 1, 0)
    assert (result["max_output_tokens_per_s"], result["mean_tpot_ms"]) == (0, None)


def test_details_have_an_entry_for_each_request_failed_or_not():
    details = serve_details([outcome(0, 1.0), outcome(0, error="lost")])
    assert details["errors"] == ["", "lost"]
    assert {len(each) for each in details.values()} == {2}


def test_the_offline_results_have_vllm_s_fields():
    assert throughput_result(4, 100, 2.0) == {
        "elapsed_time": 2.0,
        "num_requests": 4,
        "total_num_tokens": 100,
        "requests_per_second": 2.0,
        "tokens_per_second": 50.0,
    }
    result = latency_result([1.0, 2.0, 3.0])
    assert result["avg_latency"] == 2.0
    assert result["std_latency"] == pytest.approx(0.8164966)
    assert result["percentiles"]["50"] == 2.0
    assert list(result["percentiles"]) == ["10", "25", "50", "75", "90", "99"]
