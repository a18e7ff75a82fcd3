import json
from statistics import median

import pytest

from benchmarks import sim_accuracy


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    small = folder / "some_gpu.json"
    measured = {"model": "qwen3-8b", "workload": "latency1", "seconds": 2.64, "median_ttft_ms": 9.0}
    small.write_text(json.dumps({"gpu": "h200", "engine": {}, "results": [measured]}))
    arguments = ["--scale=0.1", "--measured", str(small), "--results", str(folder)]
    return sim_accuracy.main(arguments)


def test_both_workloads_are_simulated_with_the_costs_of_others(results):
    pairs = [(each["workload"], each["costs of"]) for each in results["this CPU"]]
    assert pairs == [
        *(("mixed", "other mixed"), ("prefix", "other prefix")),
        *(("mixed", "prefix"), ("prefix", "mixed")),
    ]
    for each in results["this CPU"]:
        assert each["simulated seconds"] > 0
        assert each["measured median_ttft_ms"] > 0


def test_costs_are_never_fitted_to_the_run_that_they_are_to_predict():
    one, other = (sim_accuracy.cpu_workloads(0.1, seed) for seed in (0, 1))
    assert one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one)


def test_an_error_is_the_share_by_which_the_simulation_is_too_slow(results):
    for each in (*results["this CPU"], *results["some_gpu"]):
        for name in ("seconds", "median_ttft_ms"):
            expected = each[f"simulated {name}"] / each[f"measured {name}"] - 1
            assert each[f"error of {name}"] == pytest.approx(expected)


@pytest.mark.parametrize("path", sim_accuracy.MEASURED, ids=lambda path: path.stem)
def test_the_measurements_that_the_fractions_were_chosen_by_are_predicted(path):
    outcomes = sim_accuracy.compare_with_measured(path)
    sim_accuracy.add_errors(outcomes)
    qwen = [each for each in outcomes if each["model"].startswith("qwen3")]
    assert len(qwen) == 10
    chosen_by = [each for each in qwen if each["workload"] in ("latency1", "prefill64")]
    assert max(abs(each["error of seconds"]) for each in chosen_by) < 0.03
    assert median(abs(each["error of seconds"]) for each in outcomes) < 0.05
