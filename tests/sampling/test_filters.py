import pytest
import torch

from minimal_vllm.sampling import filters
from minimal_vllm.sampling.filters import keep_min_p, keep_top_k, keep_top_p
from tests.sampling.rows import plain_probabilities, row

LOGITS = torch.tensor([0.5, 0.125, 0.25, 0.0625, 0.0625]).log()


def kept(filter_, *rows, logits=LOGITS):
    shifted = (logits - logits.max()).repeat(len(rows), 1)
    filter_(shifted, rows)
    return [torch.nonzero(r.isfinite())[:, 0].tolist() for r in shifted]


def test_top_k_keeps_k_and_of_equals_the_first():
    rows = [row(top_k=k) for k in (-1, 0, 1, 2, 4, 5, 9)]
    everything = [0, 1, 2, 3, 4]
    assert kept(keep_top_k, *rows) == [
        everything,
        everything,
        [0],
        [0, 2],
        [0, 1, 2, 3],
        everything,
        everything,
    ]


def test_top_p_keeps_the_fewest_that_reach_p_and_of_equals_the_first():
    rows = [row(top_p=p) for p in (1e-6, 0.5, 0.51, 0.75, 0.8, 0.9, 0.94, 1.0)]
    assert kept(keep_top_p, *rows) == [
        [0],
        [0],
        [0, 2],
        [0, 2],
        [0, 1, 2],
        [0, 1, 2, 3],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4],
    ]


def test_top_p_of_equals_keeps_as_many_as_needed():
    assert kept(keep_top_p, row(top_p=0.5), logits=torch.zeros(8)) == [[0, 1, 2, 3]]


def test_min_p_compares_with_the_most_probable():
    rows = [row(min_p=p) for p in (0.0, 0.1249, 0.126, 0.49, 1.0)]
    assert kept(keep_min_p, *rows) == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2], [0, 2], [0]]


def test_top_p_counts_the_probability_that_top_k_left():
    def both(shifted, rows):
        keep_top_k(shifted, rows)
        keep_top_p(shifted, rows)

    # Of the two that top_k leaves, the first has 2/3 of the probability.
    rows = [row(top_k=2, top_p=p) for p in (0.6, 0.7)]
    assert kept(both, *rows) == [[0], [0, 2]]


@pytest.mark.parametrize("guess", [1, 3, 40, 1024])
def test_the_guess_for_top_p_does_not_change_its_result(monkeypatch, guess):
    monkeypatch.setattr(filters, "NUCLEUS_GUESS", guess)
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(0)) * 2
    logits = logits.bfloat16().float()  # with equals among them
    rows = [row(top_p=p, top_k=k) for p in (0.3, 0.9, 0.999) for k in (0, 50)]
    shifted = logits - logits.amax(-1, keepdim=True)
    keep_top_k(shifted, rows)
    keep_top_p(shifted, rows)
    for i, one in enumerate(rows):
        expected = plain_probabilities(logits[i], one.params) > 0
        assert shifted[i].isfinite().tolist() == expected.tolist()


def test_rows_without_the_option_are_not_touched():
    for filter_, params in ((keep_top_k, {"top_k": 1}), (keep_top_p, {"top_p": 0.1})):
        assert kept(filter_, row(), row(**params), row()) == [[0, 1, 2, 3, 4], [0], [0, 1, 2, 3, 4]]
