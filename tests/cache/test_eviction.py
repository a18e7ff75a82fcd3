from random import Random

import pytest

from minimal_vllm.cache.eviction import EVICTION_STRATEGIES, FIFO, LFU, LRU


def insert_all(strategy, blocks):
    for block in blocks:
        strategy.insert(block)


def use_again(strategy, block):
    """A request finds the evictable block, uses it and releases it."""
    strategy.hit(block)
    strategy.remove(block)
    strategy.insert(block)


def evict_all(strategy):
    return [strategy.evict() for _ in range(len(strategy))]


@pytest.mark.parametrize("name", EVICTION_STRATEGIES)
def test_unused_blocks_are_evicted_in_the_order_of_their_release(name):
    strategy = EVICTION_STRATEGIES[name]()
    insert_all(strategy, [3, 1, 2, 0])
    assert evict_all(strategy) == [3, 1, 2, 0]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (LRU(), [1, 3, 0, 2]),  # released last: 2
        (LFU(), [1, 3, 2, 0]),  # hit twice: 0; once: 2
        (FIFO(), [0, 1, 2, 3]),  # hits don't count
    ],
)
def test_a_block_used_again_is_evicted_when_its_strategy_says(strategy, expected):
    insert_all(strategy, [0, 1, 2, 3])
    for block in (0, 0, 2):
        use_again(strategy, block)
    assert evict_all(strategy) == expected


@pytest.mark.parametrize("name", EVICTION_STRATEGIES)
def test_a_removed_block_is_not_evicted(name):
    strategy = EVICTION_STRATEGIES[name]()
    insert_all(strategy, [0, 1, 2])
    strategy.remove(1)
    assert (0 in strategy, 1 in strategy, len(strategy)) == (True, False, 2)
    assert evict_all(strategy) == [0, 2]


def test_lfu_counts_hits_on_blocks_in_use():
    strategy = LFU()
    strategy.hit(0)
    insert_all(strategy, [0, 1])
    assert evict_all(strategy) == [1, 0]


@pytest.mark.parametrize(("name", "expected"), [("lfu", [0, 1]), ("fifo", [1, 0])])
def test_new_content_inherits_nothing_from_the_old(name, expected):
    strategy = EVICTION_STRATEGIES[name]()
    insert_all(strategy, [0])
    use_again(strategy, 0)
    strategy.remove(0)
    strategy.forget(0)
    insert_all(strategy, [0, 1] if name == "lfu" else [1, 0])
    assert evict_all(strategy) == expected


def smallest_key(name, history):
    """The block that the strategy's definition says goes first, found the slow way."""
    key = {
        "lru": lambda block: history[block]["released"],
        "lfu": lambda block: (history[block]["hits"], history[block]["released"]),
        "fifo": lambda block: history[block]["first_released"],
    }[name]
    return min((block for block in history if history[block]["evictable"]), key=key)


@pytest.mark.parametrize("name", EVICTION_STRATEGIES)
@pytest.mark.parametrize("seed", range(20))
def test_a_long_life_agrees_with_the_definition(name, seed):
    random, strategy, history = Random(seed), EVICTION_STRATEGIES[name](), {}
    for now in range(1000):
        block = random.randrange(12)
        entry = history.get(block)
        if entry is None:
            history[block] = {"hits": 0, "released": now, "first_released": now, "evictable": True}
            strategy.insert(block)
        elif not entry["evictable"]:
            entry.update(released=now, evictable=True)
            strategy.insert(block)
        elif random.random() < 0.8:
            entry.update(hits=entry["hits"] + 1, evictable=False)
            strategy.hit(block)
            strategy.remove(block)
        else:
            evicted = strategy.evict()
            assert evicted == smallest_key(name, history)
            strategy.forget(evicted)
            del history[evicted]
        assert {each for each in range(12) if each in strategy} == {
            each for each in history if history[each]["evictable"]
        }


@pytest.mark.parametrize("strategy", [LFU(), FIFO()])
def test_stale_entries_do_not_pile_up(strategy):
    strategy.insert(0)
    for _ in range(10_000):
        use_again(strategy, 0)
    assert len(strategy._heap) < 100
