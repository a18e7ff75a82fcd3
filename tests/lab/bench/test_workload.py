from collections import Counter

import pytest

from minimal_vllm_lab.bench.config import Workload
from minimal_vllm_lab.bench.workload import make_requests

SYMBOLS = 50


def test_random_prompts_have_the_given_lengths_and_share_only_the_prefix():
    workload = Workload(
        num_prompts=20, random_input_len=30, random_output_len=7, random_prefix_len=5
    )
    requests = make_requests(workload, SYMBOLS)
    assert [len(each.prompt) for each in requests] == [35] * 20
    assert {each.output_len for each in requests} == {7}
    assert len({tuple(each.prompt[:5]) for each in requests}) == 1
    assert len({tuple(each.prompt[5:]) for each in requests}) == 20
    assert all(0 <= symbol < SYMBOLS for each in requests for symbol in each.prompt)


def test_a_range_ratio_spreads_lengths_over_the_whole_range_and_no_further():
    workload = Workload(
        num_prompts=500, random_input_len=10, random_output_len=4, random_range_ratio=0.5
    )
    requests = make_requests(workload, SYMBOLS)
    assert {len(each.prompt) for each in requests} == set(range(5, 16))
    assert {each.output_len for each in requests} == set(range(2, 7))


def test_no_length_is_0():
    workload = Workload(
        num_prompts=100, random_input_len=1, random_output_len=1, random_range_ratio=0.9
    )
    requests = make_requests(workload, SYMBOLS)
    assert min(len(each.prompt) for each in requests) == 1
    assert min(each.output_len for each in requests) == 1


def test_prefixes_are_repeated_equally_often_each_time_with_a_new_suffix():
    workload = Workload(
        dataset_name="prefix_repetition",
        num_prompts=23,
        prefix_repetition_prefix_len=8,
        prefix_repetition_suffix_len=6,
        prefix_repetition_num_prefixes=4,
        prefix_repetition_output_len=9,
    )
    requests = make_requests(workload, SYMBOLS)
    prefixes = Counter(tuple(each.prompt[:8]) for each in requests)
    assert sorted(prefixes.values()) == [5, 6, 6, 6]
    assert len({tuple(each.prompt[8:]) for each in requests}) == 23
    assert {(len(each.prompt), each.output_len) for each in requests} == {(14, 9)}


@pytest.mark.parametrize("dataset", ["random", "prefix_repetition"])
def test_a_seed_repeats_a_run_and_another_run_has_other_prompts_of_the_same_lengths(dataset):
    workload = Workload(dataset_name=dataset, num_prompts=10, random_range_ratio=0.5)
    first, again, other = (make_requests(workload, SYMBOLS, run) for run in (1, 1, 2))
    assert first == again
    assert [len(each.prompt) for each in first] == [len(each.prompt) for each in other]
    assert all(one.prompt[:4] != two.prompt[:4] for one, two in zip(first, other, strict=True))
