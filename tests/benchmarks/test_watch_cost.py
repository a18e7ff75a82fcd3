"""All who can watch an engine are compared; no test looks at a time."""

from benchmarks import watch_cost


def test_every_way_of_watching_is_measured(tmp_path):
    arguments = ["--running", "2", "--steps", "3", "--results", str(tmp_path)]
    microseconds = watch_cost.main(arguments)["microseconds"]
    assert len(microseconds) == 5
    assert all(times["2"] > 0 for times in microseconds.values())
