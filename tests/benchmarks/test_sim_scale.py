from benchmarks import sim_scale


def test_each_fleet_is_measured_with_each_number_of_requests(tmp_path):
    arguments = ["--requests", "20", "30", "--fleets", "0", "1", "--results", str(tmp_path)]
    costs = sim_scale.main(arguments)["costs"]
    assert [(each["fleet"]["replicas"], each["num_requests"]) for each in costs] == [
        (1, 20),
        (1, 30),
        (100, 20),
        (100, 30),
    ]
    assert all(each["seconds"] > 0 and each["peak_mb"] > 10 for each in costs)
    assert (tmp_path / "sim_scale.json").exists()
