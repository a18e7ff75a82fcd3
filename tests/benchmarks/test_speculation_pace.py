import json

from benchmarks import speculation_pace


def test_each_choice_is_compared_with_no_guesses_and_is_the_same_each_time(tmp_path):
    arguments = ["--batches", "2", "--right", "0", "0.95", "--per-request", "2"]
    results = speculation_pace.main([*arguments, "--results", str(tmp_path)])
    outcomes = results["outcomes"]
    assert [(each["machine"], each["method"], each["right"]) for each in outcomes] == [
        (machine, method, right)
        for machine, methods in (("CPU", ""), ("GPU", "eagle3"))
        for method in ("ngram", "draft_model", *methods.split())
        for right in (0.0, 0.95)
    ]
    for wrong, right in zip(outcomes[::2], outcomes[1::2], strict=True):
        assert right["time"] < 0.9 < 1 <= wrong["time"]
    assert speculation_pace.main([*arguments, "--results", str(tmp_path)]) == results
    assert json.loads((tmp_path / "speculation_pace.json").read_text())["outcomes"] == outcomes


def test_guesses_that_do_not_pay_cost_at_most_three_percent_on_a_gpu(tmp_path):
    """Steps with guesses made on the CPU, and those after them, are not launched ahead there."""
    arguments = ["--machines", "GPU", "--batches", "1", "16", "64", "--right", "0", "0.2"]
    outcomes = speculation_pace.main([*arguments, "--results", str(tmp_path)])["outcomes"]
    assert len(outcomes) == 18
    assert [each for each in outcomes if each["time"] > 1.028] == []


def test_guesses_that_do_not_pay_cost_at_most_three_percent(tmp_path):
    """On a CPU, where a draft model costs a third of the model."""
    arguments = ["--machines", "CPU", "--batches", "1", "32", "--right", "0", "0.4"]
    outcomes = speculation_pace.main([*arguments, "--results", str(tmp_path)])["outcomes"]
    assert [each for each in outcomes if each["time"] > 1.03] == []
