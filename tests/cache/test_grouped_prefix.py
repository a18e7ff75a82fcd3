"""The longest prefix from which all groups of layers can go on, against a search of all lengths."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import LRU
from minimal_vllm.cache.grouped_prefix import find_grouped_prefix, group_hash
from minimal_vllm.cache.layer_groups import NO_BLOCK, first_seen_block

BLOCK_SIZE = 4
HASHES = [bytes([index]) * 32 for index in range(12)]


def cached_pool(num_groups, is_cached):
    """A pool in which some of the hashes lead to a block, and those blocks."""
    pool, blocks = BlockPool(12 * num_groups, LRU()), {}
    for index, block_hash in enumerate(HASHES):
        for group in range(num_groups):
            if is_cached(index, group):
                (blocks[index, group],) = pool.allocate(1)
                pool.store(blocks[index, group], group_hash(block_hash, group))
    return pool, blocks


def longest_by_trying(blocks, windows):
    def can_go_on_after(length):
        return all(
            (index, group) in blocks
            for group, window in enumerate(windows)
            for index in range(first_seen_block(length * BLOCK_SIZE, window, BLOCK_SIZE), length)
        )

    return max(filter(can_go_on_after, range(len(HASHES) + 1)))


@given(
    st.sampled_from([(None,), (None, 8), (5,), (None, 1, 1), (None, None, 9, 16), (3, 12)]),
    st.sampled_from([0.5, 0.8, 0.95]),
    st.integers(0, 2**32),
)
def test_a_hit_is_the_longest_of_which_every_group_has_what_it_sees(windows, share, seed):
    random = Random(seed)
    pool, blocks = cached_pool(len(windows), lambda *_: random.random() < share)
    found = find_grouped_prefix(pool, HASHES, windows, BLOCK_SIZE)
    length = longest_by_trying(blocks, windows)
    assert len(found) == length * len(windows)
    for entry, block in enumerate(found):
        index, group = divmod(entry, len(windows))
        seen_from = first_seen_block(length * BLOCK_SIZE, windows[group], BLOCK_SIZE)
        assert block == (blocks[index, group] if index >= seen_from else NO_BLOCK)


def test_the_same_tokens_have_another_hash_in_each_group():
    hashes = {group_hash(each, group) for each in HASHES for group in range(8)}
    assert len(hashes) == 8 * len(HASHES)
