from itertools import accumulate

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minimal_vllm.sampling.draw import BLOCK, PEAK_WEIGHT, draw, integer_weights

INF = float("inf")
JUST_BELOW_ONE = 1 - 2.0**-53


def drawn(logits, *uniforms):
    logits = torch.tensor(logits)
    rows = (logits - logits.max()).repeat(len(uniforms), 1)
    return draw(rows, np.array(uniforms)).tolist()


def test_smallest_and_largest_numbers_choose_the_first_and_last_possible_token():
    assert drawn([0.0] * 5, 0.0, JUST_BELOW_ONE) == [0, 4]
    assert drawn([-INF, -INF, 0.0, 1.0, -INF], 0.0, JUST_BELOW_ONE) == [2, 3]


@pytest.mark.parametrize("size", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_ends_of_the_vocabulary_are_reached_for_every_size(size):
    assert drawn([0.0] * size, 0.0, JUST_BELOW_ONE) == [0, size - 1]
    middle = [-INF] * size
    middle[size // 2] = -3.0
    assert drawn(middle, 0.0, 0.5, JUST_BELOW_ONE) == [size // 2] * 3


def test_a_uniform_number_on_the_border_belongs_to_the_next_token():
    below = np.nextafter(0.25, 0)
    assert drawn([0.0] * 4, 0.0, below, 0.25, 0.5, 0.75) == [0, 0, 1, 2, 3]


def test_tokens_of_probability_zero_on_a_border_are_skipped():
    assert drawn([0.0, -INF, -INF, 0.0], 0.5) == [3]


@settings(deadline=None, max_examples=100)
@given(
    logits=st.lists(st.floats(-30, 0, width=32), min_size=1, max_size=3 * BLOCK),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_the_search_in_two_steps_finds_what_a_plain_one_does(logits, uniform):
    shifted = torch.tensor([logits], dtype=torch.float32)
    shifted -= shifted.max()
    weights = integer_weights(shifted)[0].tolist()
    target = min(int(uniform * float(sum(weights))), sum(weights) - 1)
    token = next(i for i, total in enumerate(accumulate(weights)) if total > target)
    assert draw(shifted, np.array([uniform])).tolist() == [token]


@settings(deadline=None, max_examples=500)
@given(total=st.integers(1, 2**63 - 1))
@example(total=2**55 - 1)
@example(total=2**54 + 3)
def test_a_target_stays_below_any_total(total):
    assert (
        torch.tensor([JUST_BELOW_ONE], dtype=torch.float64) * torch.tensor([total])
    ).long() < total


def test_weights_of_a_huge_flat_vocabulary_do_not_overflow():
    size = 2**20
    assert size * PEAK_WEIGHT < 2**63
    assert drawn([0.0] * size, 0.0, 0.5, JUST_BELOW_ONE) == [0, size // 2, size - 1]
