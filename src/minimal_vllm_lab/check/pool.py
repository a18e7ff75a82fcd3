"""Check a block pool by its behavior, without looking inside it.

A ledger follows the calls, and knows from them alone which request holds which block and what is
cached. The pool may choose which free block it allocates; everything else is determined.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from minimal_vllm.cache.block_pool import BlockPool, InvariantError
from minimal_vllm.cache.eviction import LRU, EvictionStrategy
from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule
from minimal_vllm_lab.check.pool_ledger import Ledger
from minimal_vllm_lab.check.pool_rules import (
    CACHED,
    CHECK_FAILS,
    CHECK_PASSES,
    COUNT,
    EMPTIED,
    EVICTED,
    FINDS,
    FORGETS,
    FREE_FIRST,
    GRANTS,
    IDLE,
    IN_USE,
    NOT_CHANGED,
    NUM_FREE,
    ORDER,
    REFUSES,
    SEPARATE,
    STALE_HASH,
    STORES,
    TELLS,
)
from minimal_vllm_lab.check.search import History, find_lesson, long_lists, shorter_lists

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

MakePool = Callable[[int, EvictionStrategy], BlockPool]
Operation = tuple[str, str, int]
"""One operation: its kind, the prompt of the request, and a number that selects a block table."""
Case = tuple[int, list[Operation]]
"""The number of blocks, and the operations on them."""

TEXTS = ("", "a", "b", "ab", "aa", "aba", "abb")
"""Prompts, one letter per block. The letter is the block's content."""

KNOWN: list[Case] = [
    # A request takes the only block, and another gets none.
    (1, [("begin", "", 1), ("begin", "", 1)]),
    # A prompt is longer than the pool.
    (1, [("begin", "ab", 0)]),
    # A block is forgotten while a request holds it.
    (1, [("begin", "a", 0), ("forget", "", 0)]),
    # Two requests share a prompt that fills the pool.
    (2, [("begin", "ab", 0), ("begin", "ab", 0)]),
    # Two prompts are cached, one after the other, and a third shares one of their blocks.
    (
        2,
        [
            *(("begin", "a", 0), ("release", "", 0)),
            *(("begin", "b", 0), ("release", "", 0)),
            ("begin", "ab", 0),
        ],
    ),
]
"""The smallest cases in which the most common mistakes show."""
KNOWN_UNCACHED: list[Case] = [
    # A request takes the only block, and another gets none.
    (1, [("begin uncached", "", 1), ("begin uncached", "", 1)]),
    # A request needs more blocks than there are.
    (1, [("begin uncached", "", 2)]),
    # A request takes several blocks.
    (2, [("begin uncached", "", 2)]),
]
"""The smallest cases without a cache in which the most common mistakes show."""


def check_pool(
    make: MakePool, *, examples: int = 300, seed: int | None = None, cached: bool = True
) -> Lesson | None:
    """Check a block pool, and return a lesson about a broken rule, or None if all hold.

    Args:
        make: the pool's class. ``make(num_blocks, eviction)`` must return a new pool.
        examples: number of random histories to try.
        seed: seed of the random cases. Default: the same cases in every run.
        cached: whether blocks are cached and shared. False: requests only allocate and release.
    """

    def run(case: Case, history: History) -> None:
        num_blocks, operations = case
        history.note(f"pool = {getattr(make, '__name__', 'make')}({num_blocks}, LRU())")
        told = _Told()
        pool = make(num_blocks, told)
        driver = _Driver(pool, num_blocks, history, told)
        for operation in operations:
            driver.apply(operation)
        driver.finish()
        _check_separate(make, pool, num_blocks)

    def shorter(case: Case) -> Iterator[Case]:
        return ((case[0], operations) for operations in shorter_lists(case[1]))

    return find_lesson(
        _cases(cached),
        run,
        examples=examples,
        seed=seed,
        shorter=shorter,
        known=KNOWN if cached else KNOWN_UNCACHED,
    )


def _cases(cached: bool) -> "SearchStrategy[Case]":
    from hypothesis import strategies as st

    kinds = ["begin", "release", "begin", "release", "grow", "forget", "forget all", "evicted"]
    if not cached:
        kinds = ["begin uncached", "release", "begin uncached", "release", "grow"]
    operation = st.tuples(st.sampled_from(kinds), st.sampled_from(TEXTS), st.integers(0, 3))
    return st.tuples(st.integers(1, 6), long_lists(operation, 18))


class _Told(LRU):
    """The strategy of the pool, which also counts what it is told.

    Attributes:
        hits: number of hits of each block, since its content came.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hits: Counter[int] = Counter()

    def hit(self, block: int) -> None:
        """Count a hit."""
        self.hits[block] += 1

    def forget(self, block: int) -> None:
        """Forget the hits of a content that was dropped."""
        self.hits.pop(block, None)


def _check_separate(make: MakePool, pool: BlockPool, num_blocks: int) -> None:
    """Check that a new pool has all blocks while those of another one are all allocated."""
    new = make(num_blocks, LRU())
    if (new.num_free, pool.num_free) != (num_blocks, 0):
        raise Broken(
            SEPARATE,
            f"num_free is {pool.num_free} in the old pool, and {new.num_free} in a new one",
            f"0 and {num_blocks}: all blocks of the old pool are allocated",
        )


class _Driver:
    """Make the calls that a scheduler makes, and compare the pool with the ledger after each."""

    def __init__(self, pool: BlockPool, num_blocks: int, history: History, told: _Told) -> None:
        self._pool, self._history, self._told = pool, history, told
        self._ledger = Ledger(num_blocks)
        self._tables: list[list[int]] = []
        self._compare()

    def apply(self, operation: Operation) -> None:
        kind, text, number = operation
        table = self._tables[number % len(self._tables)] if self._tables else None
        if kind == "begin":
            self._begin([text[: end + 1].encode() for end in range(len(text))], number % 2)
        elif kind == "begin uncached":
            self._begin([], number)
        elif kind == "evicted":
            self._take_evicted()
        elif kind == "forget all":
            self._check_emptied()
            self._call("forget_all")
            self._forgotten(range(self._ledger.num_blocks))
        elif table is None:
            return
        elif kind == "grow":
            table += self._allocate(1)
        elif kind == "forget":
            one = table[number % len(table) :][:1] if table else []
            self._call("forget", one)
            self._forgotten(one)
        else:
            self._release(table)
        self._compare()

    def finish(self) -> None:
        """Release all blocks, and check that all of them can be allocated again."""
        for table in list(self._tables):
            self._release(table)
            self._compare()
        self._check_none_allocated()
        self._check_emptied()
        self._tables.append(self._allocate(self._ledger.num_blocks))
        self._compare()
        self._take_evicted()

    # ---- calls of a scheduler --------------------------------------------------------------------

    def _begin(self, hashes: list[bytes], num_unhashed: int) -> None:
        """Begin a request: share the cached prefix, and allocate and store the other blocks."""
        found: list[int] = []
        if hashes:
            found = list(self._call("find_prefix", hashes))
            self._expect(found, self._ledger.find(hashes), FINDS, "find_prefix")
        table = list(found)
        self._tables.append(table)
        if found:
            self._call("share", found)
            self._ledger.share(found)
            self._compare()
        count = len(hashes) - len(found) + num_unhashed
        if count:
            table += self._allocate(count)
        if len(table) < len(hashes):  # too few blocks were free
            self._release(table)
            return
        for block, block_hash in list(zip(table, hashes, strict=False))[len(found) :]:
            self._call("store", block, block_hash)
            if block_hash in self._ledger.block_of_hash:
                self._ledger.forget([self._ledger.block_of_hash[block_hash]])
            self._ledger.block_of_hash[block_hash] = block
            self._expect(self._pool.find(block_hash), block, STORES, f"find({block_hash!r})")

    def _allocate(self, count: int) -> list[int]:
        """Allocate ``count`` blocks; if too few are free, check that the pool refuses."""
        ledger = self._ledger
        if count > ledger.num_free:
            self._check_refused(count)
            return []
        self._history.note(f"pool.allocate({count})")
        try:
            blocks = self._pool.allocate(count)
        except ValueError:
            self._history.lines[-1] += "   raises ValueError"
            raise Broken(
                GRANTS,
                f"allocate({count}) raises ValueError",
                f"a list with {count} of the free blocks {ledger.free}",
            ) from None
        if not isinstance(blocks, list):
            raise Broken(GRANTS, f"a {type(blocks).__name__}", f"a list of {count} ids")
        self._history.lines[-1] += f" -> {blocks}"
        blocks = list(blocks)
        self._check_allocated(count, blocks)
        evicted = ledger.idle[: max(0, count - ledger.num_empty)]
        ledger.forget(evicted)
        ledger.evicted += evicted
        ledger.hold(blocks)
        return blocks

    def _check_refused(self, count: int) -> None:
        self._history.note(f"pool.allocate({count})")
        try:
            blocks = self._pool.allocate(count)
        except ValueError:
            self._history.lines[-1] += "   raises ValueError, as it should"
            self._check_none_taken()
            return
        except Exception as error:
            self._history.lines[-1] += f"   raises {type(error).__name__}"
            raise Broken(
                REFUSES,
                f"{type(error).__name__}: {error}",
                f"ValueError; free blocks: {self._ledger.num_free}",
            ) from None
        raise Broken(REFUSES, f"{blocks!r}", f"ValueError; free blocks: {self._ledger.num_free}")

    def _check_none_taken(self) -> None:
        """Check that a refusal left all free blocks free."""
        found, expected = self._pool.num_free, self._ledger.num_free
        if found != expected:
            raise Broken(
                REFUSES,
                f"num_free is {found} after the error",
                f"{expected}, as before the call: an error takes nothing",
            )

    def _check_none_allocated(self) -> None:
        """Check that a request for no blocks gets none, while all blocks are free."""
        self._allocate(0)
        self._compare()
        self._history.lines.pop()

    def _check_allocated(self, count: int, blocks: list[int]) -> None:
        ledger = self._ledger
        if len(blocks) != count or len(set(blocks)) != count:
            raise Broken(COUNT, f"{blocks}", f"{count} different ids" if count else "[]")
        for block in blocks:
            if not (isinstance(block, int) and 0 <= block < ledger.num_blocks):
                raise Broken(COUNT, f"{block!r}", f"ids from 0 to {ledger.num_blocks - 1}")
            if ledger.owners[block]:
                raise Broken(IN_USE, f"block {block}, which is in use", "a free block")
        num_evicted = max(0, count - ledger.num_empty)
        taken = [block for block in blocks if block in ledger.idle]
        if len(taken) > num_evicted:
            raise Broken(
                FREE_FIRST,
                f"{len(taken)} of {blocks} were cached: {taken}",
                f"{num_evicted} evicted; empty blocks: {ledger.num_empty}",
            )
        if sorted(taken) != sorted(ledger.idle[:num_evicted]):
            raise Broken(
                ORDER, f"{taken} evicted", f"{ledger.idle[:num_evicted]}, of {ledger.idle}"
            )

    def _release(self, table: list[int]) -> None:
        if table:
            self._call("release", table)
            self._ledger.release(table)
        self._tables = [each for each in self._tables if each is not table]

    def _forgotten(self, blocks: Sequence[int]) -> None:
        ledger = self._ledger
        names = [each for each, block in ledger.block_of_hash.items() if block in blocks]
        ledger.forget(blocks)
        for name in names:
            self._expect(self._pool.find(name), None, FORGETS, f"find({name!r})")
        kept = [block for block in blocks if self._pool.is_evictable(block)]
        self._expect(kept, [], FORGETS, "the list of evictable blocks among them")

    def _take_evicted(self) -> None:
        evicted = list(self._call("take_evicted"))
        self._expect(evicted, self._ledger.evicted, EVICTED, "take_evicted")
        self._ledger.evicted = []

    def _check_emptied(self) -> None:
        new = self._pool.emptied()
        if new is self._pool or new.num_free != self._ledger.num_blocks or new.eviction_order:
            found = f"{new.num_free} free, {new.eviction_order} evictable"
            raise Broken(EMPTIED, found, f"{self._ledger.num_blocks} free, none evictable")

    # ---- checks ----------------------------------------------------------------------------------

    def _compare(self) -> None:
        """Compare everything that the pool reports with the ledger."""
        pool, ledger = self._pool, self._ledger
        self._expect(pool.num_free, ledger.num_free, NUM_FREE, "pool.num_free")
        expected = {block: block_hash for block_hash, block in ledger.block_of_hash.items()}
        for block, block_hash in dict(pool.hashes).items():
            if expected.get(block) != block_hash and ledger.owners[block]:
                raise Broken(STALE_HASH, f"block {block} can still be found as {block_hash!r}")
        self._expect(dict(pool.hashes), expected, CACHED, "pool.hashes")
        self._expect(pool.num_cached, len(expected), CACHED, "pool.num_cached")
        evictable = [block for block in range(ledger.num_blocks) if pool.is_evictable(block)]
        self._expect(evictable, sorted(ledger.idle), IDLE, "the list of evictable blocks")
        self._expect(list(pool.eviction_order), ledger.idle, ORDER, "pool.eviction_order")
        self._call_check()
        self._expect(
            +self._told.hits, ledger.hits, TELLS, "the number of hits since each content came"
        )

    def _call_check(self) -> None:
        try:
            self._pool.check(self._tables)
        except InvariantError as error:
            found = f"check() raises InvariantError: {error}"
            raise Broken(CHECK_PASSES, found, "check() raises nothing") from None
        try:
            self._pool.check([*self._tables, [0]])
        except InvariantError:
            return
        raise Broken(
            CHECK_FAILS, "no exception", "InvariantError: the last table never got block 0"
        )

    def _call(self, name: str, *arguments: object) -> list[int]:
        copies = list(map(_copy, arguments))
        result: list[int] = self._history.call(f"pool.{name}", getattr(self._pool, name), *copies)
        if copies != list(arguments):
            raise Broken(NOT_CHANGED, f"it is {copies[0]} after the call", f"{arguments[0]}")
        return result

    def _expect(self, found: object, expected: object, rule: Rule, name: str) -> None:
        if found != expected:
            raise Broken(rule, f"{name} is {found!r}", f"{expected!r}")


def _copy(argument: object) -> object:
    return list(argument) if isinstance(argument, list) else argument
