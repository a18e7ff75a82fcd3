from itertools import islice

import numpy as np
import pytest

from minimal_vllm.sim.arrivals import arrival_times


def times(rate, burstiness=1.0, seed=0, count=20_000):
    return list(islice(arrival_times(rate, burstiness, seed), count))


def test_without_a_rate_all_come_at_once():
    assert times(None, count=3) == [0, 0, 0]


def test_requests_come_at_the_rate_and_in_order():
    arrivals = times(5.0)
    assert arrivals == sorted(arrivals)
    assert arrivals[-1] == pytest.approx(20_000 / 5, rel=0.03)


@pytest.mark.parametrize(("burstiness", "variation"), [(1.0, 1.0), (0.25, 2.0), (100.0, 0.1)])
def test_burstiness_is_the_shape_of_the_gaps(burstiness, variation):
    gaps = np.diff(times(1.0, burstiness))
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.05)


def test_another_rate_is_the_same_pattern_faster():
    assert times(8.0, 0.5) == pytest.approx([each / 8 for each in times(1.0, 0.5)])


def test_another_seed_is_another_pattern():
    assert times(1.0, seed=1) != times(1.0, seed=2)
