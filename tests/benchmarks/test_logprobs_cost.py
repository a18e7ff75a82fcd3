import pytest

from benchmarks.logprobs_cost import main, make_step
from minimal_vllm.outputs import FlatLogprobs


def test_all_ways_are_timed_for_all_sizes(tmp_path, capsys):
    results = main(
        ["--requests", "1", "3", "--logprobs", "0", "2", "--steps", "2", "--results", str(tmp_path)]
    )
    sizes = [(cost["num_requests"], cost["wanted"]) for cost in results["costs"]]
    assert sizes == [(1, 0), (1, 2), (3, 0), (3, 2)]
    assert "send objects" in capsys.readouterr().out
    assert list(tmp_path.iterdir())


def test_the_step_holds_as_many_log_probabilities_as_are_asked_for():
    positions = make_step(3, 2).wait()
    assert [type(each) for each in positions] == [FlatLogprobs] * 3
    assert [each.width for each in positions] == [3] * 3
    assert all(value <= 0 for each in positions for value in each.logprobs)


def test_a_step_needs_requests():
    with pytest.raises(ValueError, match="at least one"):
        make_step(0, 2)
