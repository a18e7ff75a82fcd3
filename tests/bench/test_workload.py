import math
from collections import Counter

import numpy as np
import pytest

from minimal_vllm.bench.config import Workload
from minimal_vllm.bench.workload import arrival_times, make_requests

SYMBOLS = 50


def test_random_prompts_have_the_lengths_asked_for_and_share_only_the_prefix():
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


def test_prefixes_are_repeated_equally_often_behind_each_an_own_suffix():
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


def times(burstiness, seed=0, rate=10.0, count=4000):
    return np.array(arrival_times(count, rate, burstiness, np.random.default_rng(seed)))


def test_an_infinite_rate_sends_all_at_once():
    assert arrival_times(3, math.inf, 1.0, np.random.default_rng(0)) == [0, 0, 0]


@pytest.mark.parametrize("burstiness", [0.001, 0.2, 1.0, 5.0])
def test_arrivals_come_in_order_and_keep_to_the_rate(burstiness):
    arrivals = times(burstiness)
    assert np.all(np.diff(arrivals) >= 0)
    assert arrivals[0] >= 0
    assert arrivals[-1] == pytest.approx(400)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_the_times_between_arrivals_vary_as_a_gamma_distribution_of_this_shape_does(burstiness):
    """Its coefficient of variation is 1 / sqrt(shape); for a Poisson process it is 1."""
    gaps = np.diff(times(burstiness))
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.1)


def test_a_poisson_process_has_as_many_arrivals_in_a_second_as_their_variance():
    counts = np.bincount(times(1.0).astype(int), minlength=400)[:400]
    assert counts.var() == pytest.approx(counts.mean(), rel=0.2)


def test_arrivals_of_which_all_gaps_round_to_0_are_still_numbers():
    assert all(map(math.isfinite, arrival_times(1, 10.0, 1e-6, np.random.default_rng(0))))
