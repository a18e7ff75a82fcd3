"""Which prompts go to the library together; what it computes is tested in ``test_kernels``."""

from hypothesis import given
from hypothesis import strategies as st

from minimal_vllm.attention.library import (
    SECONDS_TO_PLAN,
    FreshPrompts,
    PlanBudget,
    group_by_length,
    padded_length,
)


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


def batch_of(count, length):
    return FreshPrompts([slice(start, start + 1) for start in range(count)], length)


def uses_until_planned(budget, batch):
    uses = 0
    while not budget.is_worth_a_plan(batch):
        uses += 1
    return uses


def test_a_plan_is_made_when_our_kernel_has_lost_the_time_that_it_takes():
    budget = PlanBudget(num_heads=16, head_dim=128, num_layers=28)
    once, short = batch_of(2, 8192), batch_of(1, 1024)
    assert 1 <= uses_until_planned(budget, once) <= 5
    assert uses_until_planned(budget, short) > 100
    assert budget.is_worth_a_plan(once)
    assert budget.is_worth_a_plan(short)


@given(st.integers(0, 3), st.integers(1024, 32_768), st.integers(1, 80))
def test_our_kernel_loses_at_most_one_use_more_than_a_plan_takes(power, length, num_layers):
    budget = PlanBudget(16, 128, num_layers)
    batch = batch_of(1 << power, length)
    uses = uses_until_planned(budget, batch)
    lost = budget._lost[len(batch.rows), length]
    assert lost * (uses - 1) / uses < SECONDS_TO_PLAN <= lost


def test_shapes_are_counted_apart_and_without_layers_every_plan_is_made_at_once():
    budget = PlanBudget(16, 128, 28)
    uses_until_planned(budget, batch_of(2, 8192))
    assert not budget.is_worth_a_plan(batch_of(1, 8192))
    assert PlanBudget(16, 128, None).is_worth_a_plan(batch_of(1, 1024))
