import math
from itertools import islice

import numpy as np
import pytest

from minimal_vllm_lab.stats.arrivals import arrival_times


def times(rate, burstiness=1.0, seed=0, count=20_000, *, stretched=False):
    stretched_to = count if stretched else None
    return list(islice(arrival_times(rate, burstiness, seed, stretched_to=stretched_to), count))


@pytest.mark.parametrize("stretched", [False, True])
def test_at_an_infinite_rate_all_requests_arrive_at_once(stretched):
    assert times(math.inf, count=3, stretched=stretched) == [0, 0, 0]


def test_requests_arrive_at_the_rate_and_in_order():
    arrivals = times(5.0)
    assert arrivals == sorted(arrivals)
    assert arrivals[-1] == pytest.approx(20_000 / 5, rel=0.03)


@pytest.mark.parametrize("burstiness", [0.001, 0.2, 1.0, 5.0])
def test_stretched_arrivals_are_in_order_and_exactly_at_the_rate(burstiness):
    arrivals = times(10.0, burstiness, count=4000, stretched=True)
    assert arrivals == sorted(arrivals)
    assert arrivals[0] >= 0
    assert arrivals[-1] == pytest.approx(400)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 100.0])
@pytest.mark.parametrize("stretched", [False, True])
def test_burstiness_is_the_shape_of_the_gaps(burstiness, stretched):
    """The coefficient of variation of a gamma distribution is 1 / sqrt(shape)."""
    gaps = np.diff(times(1.0, burstiness, stretched=stretched))
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.05)


def test_arrivals_per_second_of_a_poisson_process_have_equal_mean_and_variance():
    counts = np.bincount(np.array(times(10.0, count=4000)).astype(int), minlength=390)[:390]
    assert counts.var() == pytest.approx(counts.mean(), rel=0.2)


def test_another_rate_is_the_same_pattern_faster():
    assert times(8.0, 0.5) == pytest.approx([each / 8 for each in times(1.0, 0.5)])


def test_another_seed_is_another_pattern():
    assert times(1.0, seed=1) != times(1.0, seed=2)


def test_arrivals_whose_gaps_all_round_to_0_are_still_numbers():
    assert all(map(math.isfinite, times(10.0, 1e-6, count=1, stretched=True)))
