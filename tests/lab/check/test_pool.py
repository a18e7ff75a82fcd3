from typing import ClassVar

import pytest

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm_lab.check import pool_rules as rules
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


class TakesAllWhenAskedForNone(BlockPool):
    def allocate(self, count):
        if count > self.num_free:
            raise ValueError
        if len(self._free) < count:
            return super().allocate(count)
        blocks = self._free[-count:]
        del self._free[-count:]
        for block in blocks:
            self._references[block] = 1
        return blocks


class ForgetsReferences(BlockPool):
    def allocate(self, count):
        blocks = super().allocate(count)
        for block in blocks:
            self._references[block] = 0
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


class SharesTheFreeList(BlockPool):
    _all: ClassVar = []

    def __init__(self, num_blocks, eviction):
        super().__init__(num_blocks, eviction)
        self._all[:] = self._free
        self._free = self._all


class StoreKeepsOlder(BlockPool):
    def store(self, block, h):
        if h not in self._block_of_hash:
            super().store(block, h)


class ForgetsNothing(BlockPool):
    def forget(self, blocks):
        pass


class ReleaseDropsHash(BlockPool):
    def release(self, blocks):
        super().release(blocks)
        self.forget([b for b in blocks if not self._references[b]])


class ReleaseToFree(BlockPool):
    "cached blocks go to free list w/ their hash"

    def release(self, blocks):
        for b in reversed(blocks):
            self._references[b] -= 1
            if not self._references[b]:
                self._free.append(b)


class ReleaseAtOne(BlockPool):
    "frees shared blocks at the first release"

    def release(self, blocks):
        for b in reversed(blocks):
            self._references[b] = 0
            if self._hashes[b] is None:
                self._free.append(b)
            elif b not in self._evictable:
                self._evictable.insert(b)


class ShareWithoutRemove(BlockPool):
    def share(self, blocks):
        for b in blocks:
            self._evictable.hit(b)
            self._references[b] += 1


class ShareSetsOne(BlockPool):
    def share(self, blocks):
        super().share(blocks)
        for b in blocks:
            self._references[b] = 1


class NumFreeOnlyEmpty(BlockPool):
    @property
    def num_free(self):
        return len(self._free)


class AllocIter(BlockPool):
    def allocate(self, n):
        return iter(super().allocate(n))


class AllocIndexError(BlockPool):
    def allocate(self, n):
        b = [self._free.pop() if self._free else self._evict() for _ in range(n)]
        for x in b:
            self._references[x] = 1
        return b


class AllocNone(BlockPool):
    def allocate(self, n):
        super().allocate(n)


class OffByOne(BlockPool):
    def allocate(self, n):
        if n >= self.num_free:
            raise ValueError
        return super().allocate(n)


class AllocLessFalsy(BlockPool):
    "block 0 is taken for none"

    def allocate(self, n):
        return [b or self.num_blocks - 1 for b in super().allocate(n)]


class FindTakes(BlockPool):
    def find_prefix(self, h):
        b = super().find_prefix(h)
        self.share(b)
        return b


class FindRaises(BlockPool):
    def find_prefix(self, h):
        return [self._block_of_hash[x] for x in h]


class FindIdle(BlockPool):
    "finds only blocks that nobody holds"

    def find_prefix(self, h):
        out = []
        for x in h:
            b = self._block_of_hash.get(x)
            if b is None or b not in self._evictable:
                break
            out.append(b)
        return out


class EvictedTwice(BlockPool):
    def take_evicted(self):
        return list(self._evicted)


class EvictsNotNoted(BlockPool):
    def _evict(self):
        b = self._evictable.evict()
        self._drop_hash(b)
        return b


class EmptiedKeepsStrategy(BlockPool):
    def emptied(self):
        return type(self)(self.num_blocks, self._evictable)


class CachedCount(BlockPool):
    @property
    def num_cached(self):
        return len(self._evictable)


class IsEvictableAny(BlockPool):
    def is_evictable(self, b):
        return self._hashes[b] is not None


class FindWrong(BlockPool):
    def find(self, h):
        return self._block_of_hash.get(h) or None


class NoHit(BlockPool):
    "does not tell the strategy of a hit"

    def share(self, blocks):
        for b in blocks:
            if not self._references[b]:
                self._evictable.remove(b)
            self._references[b] += 1


class NoForgetTold(BlockPool):
    def _drop_hash(self, block):
        del self._block_of_hash[self._hashes[block]]
        self._hashes[block] = None


class MutatesTable(BlockPool):
    def release(self, blocks):
        super().release(blocks)
        if isinstance(blocks, list):
            blocks.clear()


class GivesOneBlockTwice(BlockPool):
    def allocate(self, count):
        blocks = super().allocate(count)
        return blocks[:1] * count


class LeavesWhatItGives(BlockPool):
    def allocate(self, count):
        if count > len(self._free):
            raise ValueError
        blocks = self._free[len(self._free) - count :]
        for block in blocks:
            self._references[block] = 1
        return blocks


class ReleasesAllButTheLast(BlockPool):
    def release(self, blocks):
        super().release(blocks[:-1])


class KeepsReferences(BlockPool):
    def release(self, blocks):
        self._free.extend(blocks)


class FreesTheList(BlockPool):
    def release(self, blocks):
        for block in blocks:
            self._references[block] = 0
        self._free.append(blocks)


class RefusesWithNone(BlockPool):
    def allocate(self, count):
        return super().allocate(count) if count <= self.num_free else None


class RefusesWithAnotherError(BlockPool):
    def allocate(self, count):
        if count > self.num_free:
            raise MemoryError(count)
        return super().allocate(count)


MUTANTS = {
    FreesTwice: rules.NUM_FREE,
    Leaks: rules.NUM_FREE,
    HandsOutWhatIsInUse: rules.NUM_FREE,
    NeverEvicts: rules.GRANTS,
    EvictsFirst: rules.FREE_FIRST,
    TakesSomeBeforeItRefuses: rules.REFUSES,
    TakesAllWhenAskedForNone: rules.COUNT,
    ForgetsReferences: rules.CHECK_PASSES,
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
    SharesTheFreeList: rules.SEPARATE,
    StoreKeepsOlder: rules.STORES,
    ForgetsNothing: rules.FORGETS,
    ReleaseDropsHash: rules.CACHED,
    ReleaseToFree: rules.IDLE,
    ReleaseAtOne: rules.NUM_FREE,
    ShareWithoutRemove: rules.NUM_FREE,
    ShareSetsOne: rules.CHECK_PASSES,
    NumFreeOnlyEmpty: rules.NUM_FREE,
    AllocIter: rules.GRANTS,
    AllocIndexError: rules.REFUSES,
    AllocNone: rules.GRANTS,
    OffByOne: rules.GRANTS,
    AllocLessFalsy: rules.COUNT,
    FindTakes: rules.CHECK_PASSES,
    FindRaises: RAISES,
    FindIdle: rules.FINDS,
    EvictedTwice: rules.EVICTED,
    EvictsNotNoted: rules.EVICTED,
    EmptiedKeepsStrategy: rules.EMPTIED,
    CachedCount: rules.CACHED,
    IsEvictableAny: rules.IDLE,
    FindWrong: rules.STORES,
    NoHit: rules.TELLS,
    NoForgetTold: rules.TELLS,
    MutatesTable: rules.NOT_CHANGED,
    GivesOneBlockTwice: rules.COUNT,
    LeavesWhatItGives: rules.NUM_FREE,
    ReleasesAllButTheLast: rules.NUM_FREE,
    KeepsReferences: rules.CHECK_PASSES,
    FreesTheList: RAISES,
    RefusesWithNone: rules.REFUSES,
    RefusesWithAnotherError: rules.REFUSES,
}
OF_THE_CACHE = {
    *(NeverEvicts, EvictsFirst, ReleasesHeadFirst, FindsBehindAGap, SharesWithoutCounting),
    *(KeepsNamesOfEvicted, ForgetsToTellWhatWasEvicted, StoreKeepsOlder, ForgetsNothing),
    *(ReleaseDropsHash, ReleaseToFree, ReleaseAtOne, ShareWithoutRemove, ShareSetsOne),
    *(NumFreeOnlyEmpty, FindTakes, FindRaises, FindIdle, EvictedTwice, EvictsNotNoted),
    *(EmptiedKeepsStrategy, CachedCount, IsEvictableAny, FindWrong, NoHit, NoForgetTold),
}
"""Mistakes that show only with a prefix cache."""


def test_the_engine_s_pool_passes():
    assert check_pool(BlockPool) is None


@pytest.mark.breaks("check block_pool")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mistake_is_found_and_named(mutant):
    lesson = check_pool(mutant)
    assert lesson is not None
    assert lesson.rule is MUTANTS[mutant], "\n".join(lesson.lines())


@pytest.mark.breaks("allocate-and-free")
@pytest.mark.parametrize("mutant", [each for each in MUTANTS if each not in OF_THE_CACHE])
def test_a_mistake_is_found_without_a_cache_too(mutant):
    lesson = check_pool(mutant, cached=False)
    assert lesson is not None
    assert lesson.rule is MUTANTS[mutant], "\n".join(lesson.lines())


def test_the_history_has_only_the_necessary_calls():
    assert check_pool(FreesTwice).history == [
        "pool = FreesTwice(1, LRU())",
        "pool.allocate(1) -> [0]",
        "pool.release([0])",
    ]


@pytest.mark.parametrize(
    ("mutant", "found", "expected"),
    [
        (TakesAllWhenAskedForNone, "[0]", "[]"),
        (
            TakesSomeBeforeItRefuses,
            "num_free is 0 after the error",
            "1, as before the call: an error takes nothing",
        ),
        (
            ForgetsReferences,
            "check() raises InvariantError: self._references[0] is 0, but 1 request holds block 0",
            "check() raises nothing",
        ),
        (OffByOne, "allocate(1) raises ValueError", "a list with 1 of the free blocks [0]"),
    ],
)
def test_a_lesson_says_what_was_found_and_what_was_expected(mutant, found, expected):
    lesson = check_pool(mutant, cached=False)
    assert (lesson.found, lesson.expected) == (found, expected)
