"""As many tokens are guessed as pay."""

import pytest

from minimal_vllm.speculation.pace import (
    FREE_ROWS,
    Acceptance,
    CostMeter,
    Costs,
    choose_counts,
    may_pay,
)


def test_a_share_follows_the_newest_guesses():
    acceptance = Acceptance()
    for _ in range(30):
        acceptance.note(3, num_accepted=3)
    assert acceptance.rate > 0.99
    for _ in range(30):
        acceptance.note(3, num_accepted=0)
    assert acceptance.rate < 0.01
    for _ in range(1000):
        acceptance.recover()
    assert acceptance.rate > 0.5
    acceptance.note(2, num_accepted=1)
    acceptance.rate = 0.0
    for _ in range(60):
        acceptance.recover()
    assert acceptance.rate > 0.5


def test_where_no_guess_is_ever_right_hardly_any_is_made():
    acceptance, num_attempts = Acceptance(), 0
    for _ in range(1000):
        if acceptance.rate > 0.25:
            acceptance.note(4, num_accepted=0)
            num_attempts += 1
        else:
            acceptance.recover()
    assert num_attempts < 30


def test_guesses_behind_a_wrong_one_tell_nothing():
    one, many = Acceptance(), Acceptance()
    one.note(1, 0)
    many.note(9, 0)
    assert one.rate == many.rate


def test_costs_are_learned_from_steps_of_several_sizes():
    meter = CostMeter()
    assert meter.costs.fixed / meter.costs.row == FREE_ROWS
    for step in range(300):
        rows, passes = 1 + step % 5, step % 3
        meter.note(rows, passes, 0.010 + 0.0005 * rows + 0.003 * passes)
    costs = meter.costs
    assert costs.fixed == pytest.approx(0.010, rel=0.05)
    assert costs.row == pytest.approx(0.0005, rel=0.05)
    assert costs.guessing == pytest.approx(0.003, rel=0.05)


def test_steps_of_one_size_leave_the_assumptions_as_they_are():
    meter = CostMeter()
    for _ in range(100):
        meter.note(3, 0, 0.02)
    assert meter.costs.fixed / meter.costs.row == pytest.approx(FREE_ROWS, rel=0.01)
    assert meter.costs.of_step(3, 0) == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("rates", "num_rows", "costs", "counts"),
    [
        ([0.9], 1, Costs(100, 1), [5]),  # rows cost next to nothing
        ([0.9, 0.0, 0.5], 3, Costs(30, 1), [5, 0, 3]),  # 0.5 ** 4 < 3 / 33
        ([0.9] * 300, 300, Costs(30, 1), [0] * 300),  # 0.9 < 300 / 330
        ([0.5], 1, Costs(10, 1, 3), [1]),  # (1 + 0.5) / 15 > 1 / 11 > (1 + 0.75) / 19
        ([0.5], 1, Costs(10, 1, 9), [0]),  # the draft model is as slow as the model
        ([0.9], 1, Costs(0, 1), [0]),  # a step costs no more than its rows
        ([1.0, 1.0], 2, Costs(0, 0), [5, 5]),
        ([], 7, Costs(10, 1), []),
    ],
)
def test_guesses_are_made_where_they_pay(rates, num_rows, costs, counts):
    most = [5] * len(rates)
    assert choose_counts(rates, most, num_rows, costs, in_passes=True) == counts


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("num_requests", [1, 16, 200])
@pytest.mark.parametrize("costs", [Costs(16, 1, 4), Costs(150, 1, 0), Costs(0, 1), Costs(0, 0)])
def test_where_guesses_are_ruled_out_at_once_none_would_be_chosen(rate, num_requests, costs):
    rates, most = [rate] * num_requests, [5] * num_requests
    if not may_pay(rate, num_requests, costs):
        counts = choose_counts(rates, most, num_requests, costs, in_passes=False)
        assert not any(counts)


def test_having_guesses_at_all_must_pay():
    """One request of four has guesses, for which a lookup needs no passes."""
    most = [0, 3, 0, 0]
    assert choose_counts([0.9] * 4, most, 4, Costs(16, 1, 2), in_passes=False) == [0, 3, 0, 0]
    assert choose_counts([0.9] * 4, most, 4, Costs(16, 1, 20), in_passes=False) == [0, 0, 0, 0]


def test_the_chosen_number_of_passes_is_the_best():
    """Leviathan et al., theorem 3.8, for guesses of one request."""
    costs, rate = Costs(20, 0.5, 4), 0.8

    def speed(count):
        return sum(rate**j for j in range(count + 1)) / costs.of_step(1 + count, count)

    (chosen,) = choose_counts([rate], [8], 1, costs, in_passes=True)
    assert chosen == max(range(9), key=speed)
    assert 0 < chosen < 8
