from collections import OrderedDict
from typing import ClassVar

import pytest

from minimal_vllm.cache.eviction import EVICTION_STRATEGIES, LRU
from minimal_vllm_lab.check import eviction as rules
from minimal_vllm_lab.check.eviction import check_eviction
from minimal_vllm_lab.check.search import RAISES


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


class EvictsNone(LRU):
    def evict(self):
        super().evict()


class EvictsThePair(LRU):
    def evict(self):
        return self._released.popitem(last=False)


class InsertsAtTheFront(LRU):
    def insert(self, block):
        super().insert(block)
        self._released.move_to_end(block, last=False)


class RemovesTheOldest(LRU):
    def remove(self, block):
        self._released.popitem(last=False)


class EvictsOnRemove(LRU):
    def remove(self, block):
        super().remove(block)
        if self._released:
            self._released.popitem(last=False)


class KeepsDuplicates(LRU):
    def __init__(self):
        self._released = []

    def insert(self, b):
        self._released += [b, b]

    def remove(self, b):
        self._released.remove(b)

    def evict(self):
        return self._released.pop(0)

    def in_order(self):
        return list(self._released)


class AlwaysContains(LRU):
    def __contains__(self, block):
        return True


class ContainsByTruth(LRU):
    def __contains__(self, block):
        return bool(self._released.get(block))


class LengthOfAll(LRU):
    def __init__(self):
        super().__init__()
        self._n = 0

    def insert(self, b):
        super().insert(b)
        self._n += 1

    def __len__(self):
        return self._n


class Shared(LRU):
    _all: ClassVar = OrderedDict()

    def __init__(self):
        self._released = self._all


class GivesItsOwnList(LRU):
    """in_order returns the list itself, which callers change"""

    def __init__(self):
        self._released = []

    def insert(self, b):
        self._released.append(b)

    def remove(self, b):
        self._released.remove(b)

    def evict(self):
        return self._released.pop(0)

    def in_order(self):
        return self._released


class GivesAnIterator(LRU):
    def in_order(self):
        return iter(self._released)


class FewInOrder(LRU):
    def in_order(self):
        return super().in_order()[:1]


class InOrderEmpties(LRU):
    def in_order(self):
        r = []
        while self._released:
            r.append(self._released.popitem(last=False)[0])
        return r


class HitMoves(LRU):
    def hit(self, block):
        self._released[block] = None
        self._released.move_to_end(block)


class ForgetRemoves(LRU):
    def forget(self, block):
        del self._released[block]


class LRUByNumber(LRU):
    def insert(self, b):
        super().insert(b)
        self._released = OrderedDict.fromkeys(sorted(self._released))


class Strings(LRU):
    def evict(self):
        return str(super().evict())


MUTANTS = {
    MostRecentlyUsed: rules.LEAST_RECENT,
    KeepsWhatItEvicts: rules.MEMBERS,
    KeepsItsIndexInTheQueue: rules.LEAST_RECENT,
    RemovesNothing: rules.MEMBERS,
    CountsWrong: rules.MEMBERS,
    EvictsAtRandom: rules.LEAST_RECENT,
    ListsBackwards: rules.IN_ORDER,
    EvictsNone: rules.EVICTS,
    EvictsThePair: rules.EVICTS,
    InsertsAtTheFront: rules.LEAST_RECENT,
    RemovesTheOldest: rules.MEMBERS,
    EvictsOnRemove: rules.MEMBERS,
    KeepsDuplicates: rules.MEMBERS,
    AlwaysContains: rules.MEMBERS,
    ContainsByTruth: rules.MEMBERS,
    LengthOfAll: rules.MEMBERS,
    Shared: rules.SEPARATE,
    GivesItsOwnList: rules.REPORTS_ONLY,
    GivesAnIterator: rules.REPORTS_ONLY,
    FewInOrder: rules.IN_ORDER,
    InOrderEmpties: rules.REPORTS_ONLY,
    HitMoves: rules.MEMBERS,
    ForgetRemoves: RAISES,
    LRUByNumber: rules.LEAST_RECENT,
    Strings: rules.EVICTS,
}


@pytest.mark.parametrize("strategy", EVICTION_STRATEGIES.values())
def test_the_engine_s_strategies_pass(strategy):
    assert check_eviction(strategy) is None
    is_lru = check_eviction(strategy, least_recently_used=True) is None
    assert is_lru is (strategy is LRU)


@pytest.mark.breaks("eviction", "check eviction_policy")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mistake_is_found_and_named(mutant):
    lesson = check_eviction(mutant, least_recently_used=True)
    assert lesson is not None
    assert lesson.rule is MUTANTS[mutant], "\n".join(lesson.lines())


def test_any_order_is_accepted_if_it_is_the_one_that_is_announced():
    assert check_eviction(KeepsItsIndexInTheQueue) is None
    assert check_eviction(EvictsAtRandom).rule is rules.IN_ORDER
