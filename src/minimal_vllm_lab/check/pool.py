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
from minimal_vllm_lab.check.search import History, find_lesson, long_lists, shorter_lists

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

MakePool = Callable[[int, EvictionStrategy], BlockPool]
Operation = tuple[str, str, int]
"""One random operation: its kind, the prompt of the request, and a number that selects a block
table.
"""

TEXTS = ("", "a", "b", "ab", "aa", "aba", "abb")
"""Prompts, one letter per block. The letter is the block's content."""

COUNT = Rule(
    "allocate(n) returns n different ids from 0 to num_blocks - 1.",
    "The ids are indices into the KV cache. An id that is out of range or returned twice is "
    "another block's memory.",
    "03-paging",
)
IN_USE = Rule(
    "A block that a request holds is never allocated again.",
    "Two requests would write their keys and values to the same memory, and each would read the "
    "other's.",
    "03-paging",
)
REFUSES = Rule(
    "If fewer than n blocks are free, allocate(n) raises ValueError and takes nothing.",
    "The scheduler then preempts a request and tries again. Blocks that were taken before the "
    "error have no owner, and are lost for good.",
    "03-paging",
)
NUM_FREE = Rule(
    "num_free counts every block that no request holds, whether or not its content is cached.",
    "If it is too low, blocks have leaked, and the pool shrinks until nothing can run. If it is "
    "too high, the scheduler admits requests for which there is no room. A shared block is free "
    "when the last request has released it.",
    "03-paging",
)
FREE_FIRST = Rule(
    "Empty blocks are allocated before cached blocks are evicted.",
    "Eviction throws away keys and values that the next request may need. An empty block costs "
    "nothing.",
    "06-prefix-caching",
)
IDLE = Rule(
    "A cached block is evictable exactly while no request holds it.",
    "If it is not evictable after its last owner has released it, it can never be reused. If it is "
    "evictable while a request holds it, a running request loses its memory.",
    "06-prefix-caching",
)
ORDER = Rule(
    "The eviction strategy chooses the cached block to evict. Released blocks are inserted tail "
    "first.",
    "A block can be found only if all blocks before it are found. The tail of a text must "
    "therefore be evicted before its head; otherwise the rest stays cached, but can never be "
    "found.",
    "06-prefix-caching",
)
FINDS = Rule(
    "find_prefix returns the blocks of the longest prefix whose blocks are all cached.",
    "Too few blocks: prompts are computed again without need. Too many, or blocks after a gap: a "
    "request reads the keys and values of another text.",
    "06-prefix-caching",
)
STALE_HASH = Rule(
    "A block that is allocated again can't be found under its old hash.",
    "A request that found it would read what its new owner writes.",
    "06-prefix-caching",
)
CACHED = Rule(
    "hashes and num_cached report what can be found: one hash per block, one block per hash.",
    "The view and the metrics show them. Two blocks with the same hash waste memory.",
    "06-prefix-caching",
)
EVICTED = Rule(
    "take_evicted returns the blocks evicted since the last call, in order of eviction.",
    "The records and the view rebuild the state of the cache from this list.",
    "06-prefix-caching",
)
CHECK_PASSES = Rule(
    "The reference counts agree with the block tables: check() raises nothing.",
    "A block with too few references is allocated while a request still holds it. A block with too "
    "many references is never free again.",
    "03-paging",
)
CHECK_FAILS = Rule(
    "check() raises InvariantError if the block tables do not agree with the reference counts.",
    "All other tests of the engine rely on it to find mistakes.",
    "03-paging",
)
EMPTIED = Rule(
    "emptied() returns a new pool of the same size, in which all blocks are free.",
    "The engine continues with it after a step that failed halfway.",
    "03-paging",
)


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

    def run(case: tuple[int, list[Operation]], history: History) -> None:
        num_blocks, operations = case
        history.note(f"pool = {getattr(make, '__name__', 'make')}({num_blocks}, LRU())")
        driver = _Driver(make(num_blocks, LRU()), num_blocks, history)
        for operation in operations:
            driver.apply(operation)
        driver.finish()

    def shorter(
        case: tuple[int, list[Operation]],
    ) -> Iterator[tuple[int, list[Operation]]]:
        return ((case[0], operations) for operations in shorter_lists(case[1]))

    return find_lesson(_cases(cached), run, examples=examples, seed=seed, shorter=shorter)


def _cases(cached: bool) -> "SearchStrategy[tuple[int, list[Operation]]]":
    from hypothesis import strategies as st

    kinds = ["begin", "release", "begin", "release", "grow", "forget", "forget all", "evicted"]
    if not cached:
        kinds = ["begin uncached", "release", "begin uncached", "release", "grow"]
    operation = st.tuples(st.sampled_from(kinds), st.sampled_from(TEXTS), st.integers(0, 3))
    return st.tuples(st.integers(1, 6), long_lists(operation, 18))


class _Ledger:
    """The state that follows from the calls alone, whatever the pool reports."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.owners: Counter[int] = Counter()
        self.block_of_hash: dict[bytes, int] = {}
        self.idle: list[int] = []
        """Cached blocks that no request holds, the next one to be evicted first."""
        self.evicted: list[int] = []

    @property
    def num_free(self) -> int:
        return sum(self.owners[block] == 0 for block in range(self.num_blocks))

    @property
    def num_empty(self) -> int:
        return self.num_free - len(self.idle)

    def find(self, hashes: Sequence[bytes]) -> list[int]:
        found = []
        for block_hash in hashes:
            if block_hash not in self.block_of_hash:
                break
            found.append(self.block_of_hash[block_hash])
        return found

    def hold(self, blocks: Sequence[int]) -> None:
        self.owners.update(blocks)
        self.idle = [block for block in self.idle if block not in blocks]

    def release(self, blocks: Sequence[int]) -> None:
        self.owners.subtract(blocks)
        cached = set(self.block_of_hash.values())
        self.idle += [each for each in reversed(blocks) if not self.owners[each] and each in cached]

    def forget(self, blocks: Sequence[int]) -> None:
        self.block_of_hash = {
            block_hash: block
            for block_hash, block in self.block_of_hash.items()
            if block not in blocks
        }
        self.idle = [block for block in self.idle if block not in blocks]


class _Driver:
    """Make the calls that a scheduler makes, and compare the pool with the ledger after each."""

    def __init__(self, pool: BlockPool, num_blocks: int, history: History) -> None:
        self._pool, self._history = pool, history
        self._ledger = _Ledger(num_blocks)
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
            self._call("forget_all")
            self._ledger.forget(range(self._ledger.num_blocks))
        elif table is None:
            return
        elif kind == "grow":
            table += self._allocate(1)
        elif kind == "forget":
            one = table[number % len(table) :][:1] if table else []
            self._call("forget", one)
            self._ledger.forget(one)
        else:
            self._release(table)
        self._compare()

    def finish(self) -> None:
        """Release all blocks, and check that all of them can be allocated again."""
        for table in list(self._tables):
            self._release(table)
            self._compare()
        self._tables.append(self._allocate(self._ledger.num_blocks))
        self._compare()
        self._take_evicted()
        self._check_emptied()

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
            self._ledger.hold(found)
            self._compare()
        table += self._allocate(len(hashes) - len(found) + num_unhashed)
        if len(table) < len(hashes):  # too few blocks were free
            self._release(table)
            return
        for block, block_hash in list(zip(table, hashes, strict=False))[len(found) :]:
            self._call("store", block, block_hash)
            if block_hash in self._ledger.block_of_hash:
                self._ledger.forget([self._ledger.block_of_hash[block_hash]])
            self._ledger.block_of_hash[block_hash] = block

    def _allocate(self, count: int) -> list[int]:
        """Allocate ``count`` blocks; if too few are free, check that the pool refuses."""
        ledger = self._ledger
        if count == 0:
            return []
        if count > ledger.num_free:
            self._check_refused(count)
            return []
        blocks = list(self._call("allocate", count))
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
            return
        raise Broken(REFUSES, f"{blocks!r}", f"ValueError: {self._ledger.num_free} blocks are free")

    def _check_allocated(self, count: int, blocks: list[int]) -> None:
        ledger = self._ledger
        if len(blocks) != count or len(set(blocks)) != count:
            raise Broken(COUNT, f"{blocks}", f"{count} different ids")
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
                f"{num_evicted} evicted: {ledger.num_empty} blocks are empty",
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

    def _take_evicted(self) -> None:
        evicted = list(self._call("take_evicted"))
        self._expect(evicted, self._ledger.evicted, EVICTED, "take_evicted")
        self._ledger.evicted = []

    def _check_emptied(self) -> None:
        new = self._pool.emptied()
        if new is self._pool or new.num_free != self._ledger.num_blocks:
            raise Broken(EMPTIED, f"{new.num_free} free", f"{self._ledger.num_blocks} free")

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

    def _call_check(self) -> None:
        try:
            self._pool.check(self._tables)
        except InvariantError as error:
            raise Broken(CHECK_PASSES, f"InvariantError: {error}", "no exception") from None
        try:
            self._pool.check([*self._tables, [0]])
        except InvariantError:
            return
        raise Broken(
            CHECK_FAILS, "no exception", "InvariantError: the last table never got block 0"
        )

    def _call(self, name: str, *arguments: object) -> list[int]:
        result: list[int] = self._history.call(
            f"pool.{name}", getattr(self._pool, name), *map(_copy, arguments)
        )
        return result

    def _expect(self, found: object, expected: object, rule: Rule, name: str) -> None:
        if found != expected:
            raise Broken(rule, f"{name} is {found!r}", f"{expected!r}")


def _copy(argument: object) -> object:
    return list(argument) if isinstance(argument, list) else argument
