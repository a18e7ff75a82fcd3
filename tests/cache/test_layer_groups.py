"""Which layers share block tables, and which blocks a window still sees."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimal_vllm.cache.layer_groups import MAX_GROUPS, first_seen_block, group_layers


def groups_of(counts):
    """Windows of the groups and layers per group, for ``counts[window]`` layers with each."""
    layers = [window for window, count in counts.items() for _ in range(count)]
    groups = group_layers(layers, max_model_len=131_072)
    return groups.windows, groups.size


@pytest.mark.parametrize(
    ("counts", "windows", "size"),
    [
        ({None: 28}, (None,), 28),
        ({4096: 32}, (4096,), 32),  # Mistral 7B v0.1
        ({None: 12, 128: 12}, (None, 128), 12),  # gpt-oss-20b
        ({None: 8, 1024: 40}, (None, *[1024] * 5), 8),  # Gemma 3 12B
        ({None: 10, 1024: 52}, (None, *[1024] * 6), 10),  # Gemma 3 27B: the last has 2 layers
        ({None: 13, 4096: 12}, (None, 4096), 13),
        ({None: 20, 4096: 8}, (*[None] * 5, 4096, 4096), 4),
        ({None: 2, 16: 2, 64: 2}, (None, 16, 64), 2),
    ],
)
def test_groups_waste_little_and_are_few(counts, windows, size):
    assert groups_of(counts) == (windows, size)


def test_a_window_that_no_request_exceeds_needs_no_group():
    assert group_layers([None, 4096, 4096], max_model_len=4096).windows == (None,)
    assert group_layers([None, 4095, 4095], max_model_len=4096).windows == (None, 4095, 4095)


@given(st.lists(st.sampled_from([None, 3, 7]), min_size=1, max_size=40))
def test_each_layer_has_a_place_of_its_own_in_a_group_with_its_window(windows):
    groups = group_layers(windows, max_model_len=100)
    assert [groups.windows[group] for group in groups.of_layer] == windows
    places = set(zip(groups.of_layer, groups.places, strict=True))
    assert len(places) == len(windows)
    assert max(groups.places) < groups.size
    assert set(groups.of_layer) == set(range(groups.number))
    assert groups.number <= MAX_GROUPS
    assert sorted(groups.windows, key=lambda window: window is not None) == list(groups.windows)


@given(st.integers(0, 200), st.integers(1, 50), st.integers(1, 9))
def test_no_block_that_a_token_sees_is_behind_the_window_and_the_one_before_is(
    position, window, block_size
):
    start = position // block_size * block_size
    oldest = max(start - window + 1, 0)
    assert first_seen_block(position, window, block_size) == oldest // block_size
    assert first_seen_block(position, None, block_size) == 0
