import pytest

from minimal_vllm_lab.stats.latency import distribution


def test_a_distribution_is_in_milliseconds_with_interpolated_percentiles():
    fields = distribution("ttft", [0.001, 0.002, 0.003, 0.010], [25, 99.9])
    assert fields == {
        "mean_ttft_ms": pytest.approx(4.0),
        "median_ttft_ms": pytest.approx(2.5),
        "std_ttft_ms": pytest.approx(3.5355339),
        "p25_ttft_ms": pytest.approx(1.75),
        "p99.9_ttft_ms": pytest.approx(9.979),
    }


def test_statistics_of_no_values_are_none():
    assert set(distribution("tpot", [], [99]).values()) == {None}


def test_counted_values_have_the_distribution_of_repeated_values():
    """Percentiles differ, because they are not interpolated: 2 of 3 values are at most 0.002."""
    counted = distribution("itl", [0.005, 0.002], [66, 67], [1, 2])
    listed = distribution("itl", [0.005, 0.002, 0.002], [])
    assert counted == pytest.approx({**listed, "p66_itl_ms": 2.0, "p67_itl_ms": 5.0})
