from collections import Counter

from minimal_vllm_lab.stats.guesses import GuessCounts


def test_counts_become_vllms_fields():
    counts = GuessCounts()
    for num_guesses, num_right in ((0, 0), (3, 3), (3, 1), (2, 0)):
        counts.note(num_guesses, num_right)
    assert counts == GuessCounts(3, 8, Counter({0: 2, 1: 1, 2: 1}))
    assert counts.result() == {
        "spec_decode_acceptance_rate": 50.0,
        "spec_decode_acceptance_length": 1 + 4 / 3,
        "spec_decode_num_drafts": 3,
        "spec_decode_draft_tokens": 8,
        "spec_decode_accepted_tokens": 4,
        "spec_decode_per_position_acceptance_rates": [2 / 3, 1 / 3, 1 / 3],
    }


def test_counts_between_two_moments():
    before, after = GuessCounts(1, 4, Counter({0: 1})), GuessCounts(3, 9, Counter({0: 1, 1: 0}))
    assert (after - before) == GuessCounts(2, 5, Counter())
    assert (after - before).result()["spec_decode_acceptance_length"] == 1
    assert before + after == GuessCounts(4, 13, Counter({0: 2}))


def test_without_guesses_there_are_no_fields():
    assert GuessCounts().result() == {}
