import pytest

from benchmarks import http_overhead
from benchmarks.http_overhead import Overhead, Timing


def test_each_batch_is_measured_both_ways_as_often_as_asked_for(tmp_path):
    results = http_overhead.main(
        ["--batches", "1", "3", "--tokens=4", "--repeats=2", f"--results={tmp_path}"]
    )
    assert [each["batch"] for each in results["overheads"]] == [1, 3]
    for each in results["overheads"]:
        assert len(each["offline"]) == len(each["http"]) == len(each["ratios"]) == 2
        assert all(timing["per_token"] > 0 for timing in each["offline"])
        # A client that was held up reads all tokens at once.
        assert all(timing["whole"] > 0 <= timing["per_token"] for timing in each["http"])
    assert (tmp_path / "http_overhead.json").exists()


def test_ratios_are_of_neighbours_and_cpu_time_is_of_all_tokens():
    offline = [Timing(1, 0.1, 2.0, 0), Timing(1, 0.2, 4.0, 0)]
    http = [Timing(1, 0.2, 3.0, 0.5), Timing(1, 0.3, 5.0, 0.7)]
    overhead = Overhead(batch=2, output_len=5, offline=offline, http=http)
    assert overhead.ratios == pytest.approx([2.0, 1.5])
    assert overhead.cpu_per_token(offline) == pytest.approx(6.0 / 20)
    assert overhead.cpu_per_token(http) == pytest.approx(8.0 / 20)
    assert overhead.loop_cpu_per_token == pytest.approx(1.2 / 20)
