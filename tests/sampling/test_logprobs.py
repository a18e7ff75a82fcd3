import pytest
import torch

from minimal_vllm.sampling.logprobs import top_logprobs

LOGPROBS = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()


def entries(chosen, wanted):
    (position,) = top_logprobs(LOGPROBS[None], torch.tensor([chosen]), [wanted]).wait()
    return [(token, entry.rank) for token, entry in position.items()]


def test_the_chosen_token_comes_first_and_is_not_repeated():
    assert entries(chosen=0, wanted=2) == [(0, 4), (1, 1), (3, 2)]
    assert entries(chosen=3, wanted=2) == [(3, 2), (1, 1)]
    assert entries(chosen=1, wanted=2) == [(1, 1), (3, 2)]


def test_none_wanted_gives_the_chosen_one_alone_and_minus_one_gives_all():
    assert entries(chosen=2, wanted=0) == [(2, 3)]
    assert entries(chosen=2, wanted=-1) == [(2, 3), (1, 1), (3, 2), (0, 4)]
    assert entries(chosen=2, wanted=99) == entries(chosen=2, wanted=-1)


def test_rows_get_as_many_as_each_wants():
    rows = top_logprobs(LOGPROBS.repeat(3, 1), torch.tensor([1, 1, 1]), [0, -1, 3]).wait()
    assert [len(position) for position in rows] == [1, 4, 3]


def test_values_are_the_log_probabilities():
    (position,) = top_logprobs(LOGPROBS[None], torch.tensor([0]), [4]).wait()
    for token, entry in position.items():
        assert entry.logprob == pytest.approx(LOGPROBS[token].item())
        assert entry.decoded_token is None


def test_a_row_without_a_chosen_token_does_no_harm_to_others():
    nothing, some = top_logprobs(LOGPROBS.repeat(2, 1), torch.tensor([-1, 2]), [1, 1]).wait()
    assert len(nothing) == 2
    assert [(token, entry.rank) for token, entry in some.items()] == [(2, 3), (1, 1)]


def test_rows_may_name_tokens_instead_and_get_their_ranks_too():
    wanted = [2, [3, 0], 0, [1]]
    chosen = torch.tensor([1, 2, 1, 1])
    top, named, alone, itself = top_logprobs(LOGPROBS.repeat(4, 1), chosen, wanted).wait()
    (everything,) = top_logprobs(LOGPROBS[None], torch.tensor([0]), [-1]).wait()
    assert list(named) == [2, 3, 0]
    assert [list(each) for each in (alone, itself)] == [[1], [1]]
    assert len(top) in (2, 3)
    for position in (top, named, alone, itself):
        assert position == {token: everything[token] for token in position}
