import pytest

from minimal_vllm.cache.eviction import EVICTION_STRATEGIES, LRU
from minimal_vllm_lab.check import eviction as rules
from minimal_vllm_lab.check.eviction import check_eviction


class MostRecentlyUsed(LRU):
    def evict(self):
        return self._released.popitem()[0]


class KeepsWhatItEvicts(LRU):
    def evict(self):
        return next(iter(self._released))


class KeepsItsIndexInTheQueue(LRU):
    """First in, first out: a block that is used again keeps its index in the queue."""

    def __init__(self):
        super().__init__()
        self._order = []

    def insert(self, block):
        super().insert(block)
        if block not in self._order:
            self._order.append(block)

    def in_order(self):
        return [block for block in self._order if block in self._released]

    def evict(self):
        block = self.in_order()[0]
        self.remove(block)
        self._order.remove(block)
        return block


class RemovesNothing(LRU):
    def remove(self, block):
        pass


class CountsWrong(LRU):
    def __len__(self):
        return super().__len__() + 1


class EvictsAtRandom(LRU):
    def evict(self):
        block = min(self._released)
        self.remove(block)
        return block


class ListsBackwards(LRU):
    def in_order(self):
        return super().in_order()[::-1]


MUTANTS = {
    MostRecentlyUsed: rules.LEAST_RECENT,
    KeepsWhatItEvicts: rules.MEMBERS,
    KeepsItsIndexInTheQueue: rules.LEAST_RECENT,
    RemovesNothing: rules.MEMBERS,
    CountsWrong: rules.MEMBERS,
    EvictsAtRandom: rules.LEAST_RECENT,
    ListsBackwards: rules.IN_ORDER,
}


@pytest.mark.parametrize("strategy", EVICTION_STRATEGIES.values())
def test_the_engine_s_strategies_pass(strategy):
    assert check_eviction(strategy) is None
    is_lru = check_eviction(strategy, least_recently_used=True) is None
    assert is_lru is (strategy is LRU)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mistake_is_found_and_named(mutant):
    lesson = check_eviction(mutant, least_recently_used=True)
    assert lesson is not None
    assert lesson.rule is MUTANTS[mutant], "\n".join(lesson.lines())


def test_any_order_is_accepted_if_it_is_the_one_that_is_announced():
    assert check_eviction(KeepsItsIndexInTheQueue) is None
    assert check_eviction(EvictsAtRandom).rule is rules.IN_ORDER
