"""Which prompts go to the library together; what it computes is tested in ``test_kernels``."""

from hypothesis import given
from hypothesis import strategies as st

from minimal_vllm.attention.library import FreshPrompts, group_by_length, padded_length


@given(st.integers(1, 200_000))
def test_no_prompt_is_padded_by_more_than_an_eighth(num_tokens):
    length = padded_length(num_tokens)
    assert num_tokens <= length <= num_tokens * 9 / 8
    assert padded_length(length) == length


def test_there_are_few_lengths_so_that_few_plans_are_made():
    assert len({padded_length(num_tokens) for num_tokens in range(1024, 16_384)}) == 33


@given(st.lists(st.integers(1, 5000)))
def test_each_prompt_is_in_one_group_of_its_length(lengths):
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    prompts = [slice(start, start + n) for start, n in zip(starts, lengths, strict=True)]
    groups = list(group_by_length(prompts))
    grouped = [rows for group in groups for rows in group.rows]
    assert sorted(grouped, key=lambda rows: rows.start) == prompts
    for group in groups:
        assert len(group.rows).bit_count() == 1
        assert {padded_length(rows.stop - rows.start) for rows in group.rows} == {group.length}


def test_only_whole_neighbours_need_no_padding():
    assert FreshPrompts([slice(3, 1027), slice(1027, 2051)], 1024).are_side_by_side
    assert not FreshPrompts([slice(3, 1027), slice(1028, 2052)], 1024).are_side_by_side
    assert not FreshPrompts([slice(3, 1026)], 1024).are_side_by_side
