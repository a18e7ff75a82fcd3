import pytest

from minimal_vllm.cache.block_pool import BlockPool, InvariantError
from minimal_vllm.cache.eviction import EVICTION_STRATEGIES, LRU


def make_pool(num_blocks, eviction="lru"):
    return BlockPool(num_blocks, EVICTION_STRATEGIES[eviction]())


def compute(pool, name, count, cached=()):
    """Blocks for a request whose text is ``name``, of which it found some in the cache."""
    pool.share(cached)
    blocks = [*cached, *pool.allocate(count - len(cached))]
    for index in range(len(cached), count):
        pool.store(blocks[index], hash_of(name, index))
    return blocks


def hash_of(name, index):
    return f"{name[: index + 1]}".encode()


def find(pool, name):
    return pool.find_prefix(hash_of(name, index) for index in range(len(name)))


def evict_all(pool):
    """The order in which all cached blocks are evicted; nobody may hold any."""
    pool.take_evicted()
    pool.allocate(pool.num_blocks)
    return pool.take_evicted()


def test_a_new_pool_hands_out_its_blocks_in_order():
    pool = make_pool(4)
    assert pool.allocate(3) == [0, 1, 2]
    assert (pool.num_free, pool.num_cached) == (1, 0)
    pool.check([[0, 1, 2]])


def test_what_was_freed_last_is_used_next():
    pool = make_pool(4)
    blocks = pool.allocate(3)
    pool.release(blocks)
    assert pool.allocate(4) == [0, 1, 2, 3]


def test_wanting_more_than_there_is_takes_nothing():
    pool = make_pool(2)
    with pytest.raises(ValueError, match="3 blocks wanted, 2 free"):
        pool.allocate(3)
    pool.check([])
    assert pool.num_free == 2


@pytest.mark.parametrize("eviction", EVICTION_STRATEGIES)
def test_unhashed_free_blocks_go_before_cached_ones_and_a_tail_before_its_head(eviction):
    pool = make_pool(6, eviction)
    text = compute(pool, "abc", 3)
    partly_filled = pool.allocate(1)
    pool.release(text + partly_filled)
    assert pool.allocate(6) == [3, 4, 5, 2, 1, 0]
    assert pool.take_evicted() == [2, 1, 0]
    assert pool.take_evicted() == []


@pytest.mark.parametrize(
    ("eviction", "expected"),
    [
        # ab (blocks 0 1), then xy (2 3), then ab again and cd behind it (4 5).
        ("lru", [3, 2, 5, 4, 1, 0]),
        ("lfu", [3, 2, 5, 4, 1, 0]),
        ("fifo", [1, 0, 3, 2, 5, 4]),
    ],
)
def test_a_prefix_used_again_outlives_others_except_first_in_first_out(eviction, expected):
    pool = make_pool(6, eviction)
    pool.release(compute(pool, "ab", 2))
    pool.release(compute(pool, "xy", 2))
    found = find(pool, "abcd")
    assert found == [0, 1]
    pool.release(compute(pool, "abcd", 4, found))
    assert evict_all(pool) == expected


def test_lfu_keeps_what_is_hit_often_longer_than_what_was_used_last():
    pool = make_pool(6, "lfu")
    pool.release(compute(pool, "ab", 2))
    for _ in range(2):
        pool.release(compute(pool, "ab", 2, find(pool, "ab")))
    pool.release(compute(pool, "xy", 2))
    pool.release(compute(pool, "xy", 2, find(pool, "xy")))
    pool.release(compute(pool, "pq", 2))
    assert evict_all(pool) == [5, 4, 3, 2, 1, 0]
    assert evict_all(make_pool(6, "lfu")) == []


def test_a_shared_head_is_released_only_by_its_last_owner():
    pool = make_pool(4)
    one = compute(pool, "ab", 2)
    other = compute(pool, "ac", 2, find(pool, "a"))
    assert (one, other) == ([0, 1], [0, 2])
    pool.check([one, other])
    pool.release(one)
    assert [pool.is_evictable(block) for block in range(4)] == [False, True, False, False]
    pool.check([other])
    pool.release(other)
    assert evict_all(pool) == [1, 2, 0]


def test_the_longest_cached_prefix_is_found_and_nothing_behind_a_gap():
    pool = make_pool(4)
    blocks = compute(pool, "abcd", 4)
    assert find(pool, "abxd") == blocks[:2]
    pool.forget(blocks[1:2])
    assert find(pool, "abcd") == blocks[:1]


def test_an_evicted_block_is_found_no_more():
    pool = make_pool(3)
    pool.release(compute(pool, "abc", 3))
    pool.allocate(1)
    assert (find(pool, "abc"), pool.num_cached) == ([0, 1], 2)


def test_the_newest_of_two_equal_blocks_is_found():
    pool = make_pool(4)
    one, other = compute(pool, "ab", 2), compute(pool, "ab", 2)
    assert find(pool, "ab") == other == [2, 3]
    pool.check([one, other])
    pool.release(one)
    pool.release(other)
    pool.check([])
    assert pool.allocate(4) == [0, 1, 3, 2]
    assert pool.take_evicted() == [3, 2]


def test_an_older_block_of_equal_content_becomes_free_if_unreferenced():
    pool = make_pool(3)
    pool.release(compute(pool, "a", 1))
    compute(pool, "a", 1)
    assert (find(pool, "a"), pool.num_cached, pool.num_free) == ([1], 1, 2)
    pool.check([[1]])


def test_storing_twice_changes_nothing():
    pool = make_pool(2)
    blocks = compute(pool, "a", 1)
    pool.store(0, hash_of("a", 0))
    assert find(pool, "a") == blocks
    pool.check([blocks])


def test_forgotten_blocks_stay_with_their_owners():
    pool = make_pool(4)
    held, released = compute(pool, "ab", 2), compute(pool, "xy", 2)
    pool.release(released)
    pool.forget_all()
    assert (find(pool, "ab"), find(pool, "xy"), pool.num_cached) == ([], [], 0)
    pool.check([held])
    pool.release(held)
    pool.check([])
    assert evict_all(pool) == []


class TestCheck:
    """``check`` must find each kind of wrong books, or all tests that call it are worth nothing."""

    @pytest.mark.parametrize(
        ("tables", "message"),
        [
            ([], r"self._references\[0\] is 1, but 0 requests hold block 0"),
            ([[0, 1], [1]], r"self._references\[1\] is 1, but 2 requests hold block 1"),
            ([[0, 1, 2]], r"self._references\[2\] is 0, but 1 request holds block 2"),
            ([[0, 0, 1]], "a block stands twice"),
            ([[0, 1, 9]], "the pool does not have"),
        ],
    )
    def test_tables_that_disagree_with_the_pool_are_found(self, tables, message):
        pool = make_pool(3)
        pool.allocate(2)
        pool.check([[0, 1]])
        with pytest.raises(InvariantError, match=message):
            pool.check(tables)

    @pytest.mark.parametrize(
        ("break_it", "message"),
        [
            (lambda pool: pool._free.append(0), "block 0 is not in exactly one state"),
            (lambda pool: pool._free.append(1), "block 1 is not in exactly one state"),
            (lambda pool: pool._free.remove(2), "block 2 is not in exactly one state"),
            (lambda pool: pool._evictable.insert(2), "block 2 is not in exactly one state"),
            (lambda pool: pool._hashes.__setitem__(1, None), "evictable without a hash"),
            (lambda pool: pool._hashes.__setitem__(2, b"x"), "free but still has a hash"),
            (lambda pool: pool._block_of_hash.clear(), "a hash that leads elsewhere"),
            (lambda pool: pool._block_of_hash.update({b"x": 0}), "hashes lead to"),
        ],
    )
    def test_broken_books_are_found(self, break_it, message):
        pool = BlockPool(3, LRU())
        held, released = compute(pool, "a", 1), compute(pool, "b", 1)
        pool.release(released)
        pool.check([held])
        break_it(pool)
        with pytest.raises(InvariantError, match=message):
            pool.check([held])
