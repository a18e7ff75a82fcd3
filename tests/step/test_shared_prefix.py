"""Who shares a beginning, by block tables alone; a group has what all of it begin with."""

from array import array

import pytest

from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step import shared_prefix
from minimal_vllm.step.request import Request
from minimal_vllm.step.shared_prefix import SharedPrefix, find_shared_prefixes

BLOCK_SIZE = 4


def make_requests(*tables_and_lengths):
    requests = []
    for number, (table, num_computed) in enumerate(tables_and_lengths):
        tokens = array("i", range(num_computed))
        request = Request(str(number), tokens, num_computed, SamplingParams(), number)
        request.block_table.extend(table)
        request.num_computed_tokens = num_computed
        requests.append(request)
    return requests


def found(*tables_and_lengths):
    return find_shared_prefixes(make_requests(*tables_and_lengths), BLOCK_SIZE)


def test_groups_are_told_apart_by_their_first_block():
    assert found(([1, 2, 9], 12), ([5, 6, 7], 12), ([1, 2, 8], 12), ([5, 3, 4], 12)) == [
        SharedPrefix([0, 2], 8),
        SharedPrefix([1, 3], 4),
    ]


def test_a_group_shares_what_all_its_members_begin_with():
    assert found(([1, 2, 3, 9], 16), ([1, 2, 3, 8], 16), ([1, 2, 7, 4], 16)) == [
        SharedPrefix([0, 1, 2], 8)
    ]


def test_the_token_that_is_computed_is_never_shared():
    """All four blocks are the same, but the shortest computes the last token of the second."""
    assert found(([1, 2, 3, 4], 16), ([1, 2, 3, 4], 8)) == [SharedPrefix([0, 1], 4)]


def test_nothing_is_shared_if_it_spares_less_than_an_eighth():
    alone = [([20 + place, 40 + place, 60 + place], 12) for place in range(8)]
    pair = [([1, 2], 8), ([1, 3], 8)]
    assert found(*pair, *alone[:1]) == [SharedPrefix([0, 1], 4)]
    assert found(*pair, *alone) == []


@pytest.mark.parametrize(("least", "pays"), [(16, True), (17, False)])
def test_nothing_is_shared_if_it_spares_fewer_tokens_than_a_kernel_is_worth(
    monkeypatch, least, pays
):
    monkeypatch.setattr(shared_prefix, "MIN_TOKENS", least)
    five = [([1, 10 + place], 8) for place in range(5)]
    assert found(*five) == ([SharedPrefix([0, 1, 2, 3, 4], 4)] if pays else [])
