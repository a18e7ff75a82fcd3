from typing import ClassVar

import pytest

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm_lab.check import pool as rules
from minimal_vllm_lab.check.pool import check_pool
from minimal_vllm_lab.check.search import RAISES, REPEATABLE


class FreesTwice(BlockPool):
    def release(self, blocks):
        super().release(blocks)
        self._free.append(blocks[0])


class Leaks(BlockPool):
    def release(self, blocks):
        super().release(blocks[1:])
        self._references[blocks[0]] -= 1


class HandsOutWhatIsInUse(BlockPool):
    def allocate(self, count):
        return list(range(count)) if count <= self.num_free else super().allocate(count)


class NeverEvicts(BlockPool):
    def allocate(self, count):
        if count > len(self._free):
            raise ValueError
        return super().allocate(count)


class EvictsFirst(BlockPool):
    def allocate(self, count):
        if count > self.num_free:
            raise ValueError
        blocks = [self._evict() if len(self._evictable) else self._free.pop() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks


class TakesSomeBeforeItRefuses(BlockPool):
    def allocate(self, count):
        blocks = []
        for _ in range(count):
            if not self.num_free:
                raise ValueError
            blocks += super().allocate(1)
        return blocks


class NeverRefuses(BlockPool):
    def allocate(self, count):
        return super().allocate(min(count, self.num_free))


class ReleasesHeadFirst(BlockPool):
    def release(self, blocks):
        super().release(blocks[::-1])


class FindsBehindAGap(BlockPool):
    def find_prefix(self, hashes):
        return [self._block_of_hash[each] for each in hashes if each in self._block_of_hash]


class SharesWithoutCounting(BlockPool):
    def share(self, blocks):
        for block in blocks:
            if self._references[block] == 0:
                super().share([block])


class KeepsNamesOfEvicted(BlockPool):
    def _evict(self):
        block = self._evictable.evict()
        self._evicted.append(block)
        return block


class ForgetsToTellWhatWasEvicted(BlockPool):
    def take_evicted(self):
        super().take_evicted()
        return []


class ChecksNothing(BlockPool):
    def check(self, block_tables):
        pass


class IsEmptiedInPlace(BlockPool):
    def emptied(self):
        return self


class CountsInTheClass(BlockPool):
    calls: ClassVar = []

    def allocate(self, count):
        self.calls.append(count)
        return [] if len(self.calls) % 20 == 0 else super().allocate(count)


class Raises(BlockPool):
    def release(self, blocks):
        {}[blocks[0]]


MUTANTS = {
    FreesTwice: rules.NUM_FREE,
    Leaks: rules.NUM_FREE,
    HandsOutWhatIsInUse: rules.NUM_FREE,
    NeverEvicts: RAISES,
    EvictsFirst: rules.FREE_FIRST,
    TakesSomeBeforeItRefuses: rules.NUM_FREE,
    NeverRefuses: rules.REFUSES,
    ReleasesHeadFirst: rules.ORDER,
    FindsBehindAGap: rules.FINDS,
    SharesWithoutCounting: rules.CHECK_PASSES,
    KeepsNamesOfEvicted: rules.STALE_HASH,
    ForgetsToTellWhatWasEvicted: rules.EVICTED,
    ChecksNothing: rules.CHECK_FAILS,
    IsEmptiedInPlace: rules.EMPTIED,
    CountsInTheClass: REPEATABLE,
    Raises: RAISES,
}


def test_the_engine_s_pool_passes():
    assert check_pool(BlockPool) is None


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mistake_is_found_and_named(mutant):
    lesson = check_pool(mutant)
    assert lesson is not None
    assert lesson.rule is MUTANTS[mutant], "\n".join(lesson.lines())


def test_the_history_has_only_the_necessary_calls():
    assert check_pool(FreesTwice).history == [
        "pool = FreesTwice(1, LRU())",
        "pool.allocate(1) -> [0]",
        "pool.release([0])",
    ]
