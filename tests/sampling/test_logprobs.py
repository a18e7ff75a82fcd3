import copy
import pickle

import pytest
import torch

from minimal_vllm.device.transfer import Fetch
from minimal_vllm.outputs import FlatLogprobs, FlatPromptLogprobs, Logprob
from minimal_vllm.sampling.logprobs import AskedLogprobs, QueuedLogprobs, find_logprobs

LOGPROBS = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
CPU = torch.device("cpu")


def positions(logits, chosen, wanted):
    asked = AskedLogprobs.of(wanted, logits.shape[1], CPU)
    found = find_logprobs(logits, torch.tensor(chosen), asked)
    return [each and each[0] for each in QueuedLogprobs(Fetch(found), asked).wait()]


def entries(chosen, wanted):
    (position,) = positions(LOGPROBS[None] + 5, [chosen], [wanted])
    return [(token, entry.rank) for token, entry in position.items()]


def test_the_chosen_token_comes_first_and_is_not_repeated():
    assert entries(chosen=0, wanted=2) == [(0, 4), (1, 1), (3, 2)]
    assert entries(chosen=3, wanted=2) == [(3, 2), (1, 1)]
    assert entries(chosen=1, wanted=2) == [(1, 1), (3, 2)]


def test_none_wanted_gives_the_chosen_one_alone_and_minus_one_gives_all():
    assert entries(chosen=2, wanted=0) == [(2, 3)]
    assert entries(chosen=2, wanted=-1) == [(2, 3), (1, 1), (3, 2), (0, 4)]
    assert entries(chosen=2, wanted=99) == entries(chosen=2, wanted=-1)


def test_rows_get_as_many_as_each_wants_and_none_if_they_ask_for_none():
    rows = positions(LOGPROBS.repeat(5, 1), [1] * 5, [0, None, -1, 3, None])
    assert [position and len(position) for position in rows] == [1, None, 4, 3, None]


def test_without_a_request_for_logprobs_there_is_nothing_to_compute():
    assert AskedLogprobs.of([None, None], 4, CPU) is None


def test_values_are_the_log_probabilities():
    (position,) = positions(LOGPROBS[None] - 7, [0], [4])
    for token, entry in position.items():
        assert entry.logprob == pytest.approx(LOGPROBS[token].item())
        assert entry.decoded_token is None


def test_a_row_without_a_chosen_token_does_no_harm_to_others():
    nothing, some = positions(LOGPROBS.repeat(2, 1), [-1, 2], [1, 1])
    assert len(nothing) == 2
    assert [(token, entry.rank) for token, entry in some.items()] == [(2, 3), (1, 1)]


def test_rows_may_name_tokens_instead_and_get_their_ranks_too():
    wanted = [2, [3, 0], 0, [1]]
    top, named, alone, itself = positions(LOGPROBS.repeat(4, 1), [1, 2, 1, 1], wanted)
    (everything,) = positions(LOGPROBS[None], [0], [-1])
    assert list(named) == [2, 3, 0]
    assert [list(each) for each in (alone, itself)] == [[1], [1]]
    assert len(top) in (2, 3)
    for position in (top, named, alone, itself):
        assert position == {token: everything[token] for token in position}


# ---- how they are kept --------------------------------------------------------------------------

FLAT = FlatLogprobs(
    2, [5, 7, 7, 5, 1, 1], [-1.0, -0.5, -2.0, -0.25, -3.0, -0.75], [2, 1, 9, 1, 4, 4]
)
READ = [
    {5: Logprob(-1.0, 2), 7: Logprob(-0.5, 1)},
    {7: Logprob(-2.0, 9), 5: Logprob(-0.25, 1)},
    {1: Logprob(-0.75, 4)},
]


def test_flat_log_probabilities_read_like_a_list():
    assert len(FLAT) == 3
    assert list(FLAT) == READ == FLAT
    assert FLAT[-1] == READ[-1]
    assert FLAT[1:] == READ[1:]
    assert FLAT[::-2] == READ[::-2]
    assert repr(FLAT) == repr(READ)
    assert READ[:2] != FLAT
    with pytest.raises(IndexError):
        FLAT[3]


def test_parts_can_be_joined_again():
    parts = [FLAT.part(0, 1), None, FLAT.part(1, 3), FLAT.part(3)]
    assert [len(each) for each in parts if each is not None] == [1, 2, 0]
    assert FlatLogprobs.joined(parts) == READ
    assert FlatLogprobs.joined([None]) is None
    assert parts[0] == READ[:1]
    assert list(FLAT.of_text()) == [-1.0, -2.0, -3.0]


def test_texts_are_read_with_them_and_stay_when_they_are_copied_or_pickled():
    flat = FLAT.part(1)
    flat.text_of = "abcdefgh".__getitem__
    texts = [{token: each.decoded_token for token, each in position.items()} for position in flat]
    assert texts == [{7: "h", 5: "f"}, {1: "b"}]
    for again in (flat.part(0), copy.deepcopy(flat), pickle.loads(pickle.dumps(flat))):
        assert again == flat
        assert again[1][1] == Logprob(-0.75, 4, "b")


def test_the_first_token_of_a_prompt_has_none():
    prompt = FlatPromptLogprobs(FLAT)
    assert prompt == [None, *READ]
    assert prompt[0] is None
    assert prompt[-1] == READ[-1]
    assert pickle.loads(pickle.dumps(prompt)) == prompt
