"""As many tokens are guessed as pay."""

import pytest

from minimal_vllm.speculation.pace import FREE_ROWS, Acceptance, StepCost


def test_guesses_that_hold_become_more_and_those_that_do_not_become_none():
    acceptance = Acceptance()
    counts = []
    for _ in range(20):
        counts.append(acceptance.count_above(0.3, most=6))
        acceptance.note(counts[-1], num_accepted=0) if counts[-1] else acceptance.recover()
    assert counts[0] == 5
    assert 0 in counts[:8]
    for _ in range(20):
        acceptance.note(4, num_accepted=4)
    assert acceptance.count_above(0.3, most=6) == 6


def test_a_request_without_guesses_tries_again_some_day():
    acceptance = Acceptance()
    for _ in range(20):
        acceptance.note(4, num_accepted=0)
    assert acceptance.count_above(0.3, most=6) == 0
    for _ in range(60):
        acceptance.recover()
    assert acceptance.count_above(0.3, most=6) > 0


def test_guesses_behind_a_wrong_one_tell_nothing():
    one, many = Acceptance(), Acceptance()
    one.note(1, 0)
    many.note(9, 0)
    assert one.rate == many.rate


def test_the_cost_of_a_step_is_learned():
    cost = StepCost()
    assert cost.free_rows == FREE_ROWS
    for step in range(200):
        rows = 1 + step % 5
        cost.note(rows, 0.010 + 0.0005 * rows)
    assert cost.free_rows == pytest.approx(20, rel=0.05)
    assert cost.bar(20) == pytest.approx(0.5, rel=0.05)


def test_steps_of_one_size_leave_the_assumption_as_it_is():
    cost = StepCost()
    for _ in range(100):
        cost.note(3, 0.02)
    assert cost.free_rows == pytest.approx(FREE_ROWS, rel=0.01)


def test_the_more_rows_a_step_has_the_surer_a_guess_must_be():
    bars = [StepCost().bar(rows) for rows in (1, 8, 64, 512)]
    assert bars == sorted(bars)
    assert bars[0] < 0.1
    assert bars[-1] > 0.95


def test_rows_that_cost_nothing_make_every_guess_worth_while():
    cost = StepCost()
    for rows in range(1, 50):
        cost.note(rows, 0.0)
    assert Acceptance().count_above(cost.bar(100), most=4) == 4
