"""What a block pool must do, whatever it looks like inside.

A ledger follows the calls and knows, without looking into the pool, who holds which block and what
can be found in it. Which free block is handed out is the pool's own choice; all else is not.
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
"""What is done, with which text, to which of the tables."""

TEXTS = ("", "a", "b", "ab", "aa", "aba", "abb")
"""A letter is a block's content."""

COUNT = Rule(
    "allocate(n) gives n different ids from 0 to num_blocks - 1.",
    "They become indices into the tensors of the KV cache: an id too many or twice is another's "
    "memory.",
    "03-paging",
)
IN_USE = Rule(
    "A block that a request holds is never handed out.",
    "Two requests would write their keys and values to the same memory, and each would read the "
    "other's.",
    "03-paging",
)
REFUSES = Rule(
    "If fewer than n blocks are free, allocate(n) raises ValueError and takes nothing.",
    "The scheduler then preempts somebody and asks again. Blocks that were taken before the error "
    "belong to nobody: they are lost for good.",
    "03-paging",
)
NUM_FREE = Rule(
    "num_free counts every block that nobody holds, whether something is cached in it or not.",
    "Too low: blocks have leaked, and the pool shrinks until nothing can run. Too high: the "
    "scheduler admits requests for which there is no room. A block that several requests share is "
    "free when the last of them has released it.",
    "03-paging",
)
FREE_FIRST = Rule(
    "Blocks that hold nothing go before cached ones.",
    "Evicting a cached block throws away keys and values that the next request may want; an empty "
    "block costs nothing.",
    "06-prefix-caching",
)
IDLE = Rule(
    "A cached block is evictable while nobody holds it, and only then.",
    "If it is not when its last owner is gone, it can never be used again. If it still is while "
    "somebody holds it, it is taken from under a running request.",
    "06-prefix-caching",
)
ORDER = Rule(
    "The eviction strategy says which cached block goes first, and is told of released blocks "
    "tail first.",
    "A block can be found only if all before it can. Of one text the tail must go before the head, "
    "or the rest of it is dead weight: cached, and never found.",
    "06-prefix-caching",
)
FINDS = Rule(
    "find_prefix gives the blocks of the longest beginning of which every block is cached.",
    "Too few: prompts are computed again that need not be. Too many, or behind a gap: a request "
    "reads keys and values of another text.",
    "06-prefix-caching",
)
GIVES_WAY = Rule(
    "A block that is handed out anew can't be found any more.",
    "Whoever found it would read what its new owner writes.",
    "06-prefix-caching",
)
CACHED = Rule(
    "hashes and num_cached tell what can be found: each block under one name, each name once.",
    "The view and the metrics show them; and two blocks of one name are one too many.",
    "06-prefix-caching",
)
EVICTED = Rule(
    "take_evicted lists the blocks that were evicted since it was last called, in their order.",
    "Records and the view rebuild the cache from it.",
    "06-prefix-caching",
)
BOOKS = Rule(
    "The pool's books agree with the block tables: check() has nothing to complain of.",
    "A block that counts fewer owners than it has is handed out under one of them; one that counts "
    "more is never free again.",
    "03-paging",
)
COMPLAINS = Rule(
    "check() raises InvariantError for block tables that do not agree with the books.",
    "All other tests of the engine rely on it to find what is wrong.",
    "03-paging",
)
EMPTIED = Rule(
    "emptied() gives a new pool of the same size, in which everything is free.",
    "After a step that was left half done, the engine goes on with it.",
    "03-paging",
)


def check_pool(make: MakePool, *, examples: int = 300) -> Lesson | None:
    """Hold a pool to its rules; ``make(num_blocks, eviction)`` gives a new one."""

    def run(case: tuple[int, list[Operation]], history: History) -> None:
        num_blocks, operations = case
        history.note(f"pool = {getattr(make, '__name__', 'make')}({num_blocks}, LRU())")
        play = _Play(make(num_blocks, LRU()), num_blocks, history)
        for operation in operations:
            play.do(operation)
        play.finish()

    def shorter(
        case: tuple[int, list[Operation]],
    ) -> Iterator[tuple[int, list[Operation]]]:
        return ((case[0], operations) for operations in shorter_lists(case[1]))

    return find_lesson(_cases(), run, examples=examples, shorter=shorter)


def _cases() -> "SearchStrategy[tuple[int, list[Operation]]]":
    from hypothesis import strategies as st

    kinds = ["begin", "release", "begin", "release", "grow", "forget", "forget all", "evicted"]
    operation = st.tuples(st.sampled_from(kinds), st.sampled_from(TEXTS), st.integers(0, 3))
    return st.tuples(st.integers(1, 6), long_lists(operation, 18))


class _Ledger:
    """What follows from the calls, whatever the pool believes."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.owners: Counter[int] = Counter()
        self.named: dict[bytes, int] = {}
        self.idle: list[int] = []
        """Cached and held by nobody, the next to be evicted first."""
        self.evicted: list[int] = []

    @property
    def num_free(self) -> int:
        return sum(self.owners[block] == 0 for block in range(self.num_blocks))

    @property
    def num_empty(self) -> int:
        return self.num_free - len(self.idle)

    def find(self, names: Sequence[bytes]) -> list[int]:
        found = []
        for name in names:
            if name not in self.named:
                break
            found.append(self.named[name])
        return found

    def hold(self, blocks: Sequence[int]) -> None:
        self.owners.update(blocks)
        self.idle = [block for block in self.idle if block not in blocks]

    def release(self, blocks: Sequence[int]) -> None:
        self.owners.subtract(blocks)
        cached = set(self.named.values())
        self.idle += [each for each in reversed(blocks) if not self.owners[each] and each in cached]

    def forget(self, blocks: Sequence[int]) -> None:
        self.named = {name: block for name, block in self.named.items() if block not in blocks}
        self.idle = [block for block in self.idle if block not in blocks]


class _Play:
    """One history, with its ledger."""

    def __init__(self, pool: BlockPool, num_blocks: int, history: History) -> None:
        self._pool, self._history = pool, history
        self._ledger = _Ledger(num_blocks)
        self._tables: list[list[int]] = []
        self._compare()

    def do(self, operation: Operation) -> None:
        kind, text, which = operation
        table = self._tables[which % len(self._tables)] if self._tables else None
        if kind == "begin":
            self._begin([text[: end + 1].encode() for end in range(len(text))], which % 2)
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
            one = table[which % len(table) :][:1] if table else []
            self._call("forget", one)
            self._ledger.forget(one)
        else:
            self._release(table)
        self._compare()

    def finish(self) -> None:
        """Give all back, and see that all of it can be had."""
        for table in list(self._tables):
            self._release(table)
            self._compare()
        self._tables.append(self._allocate(self._ledger.num_blocks))
        self._compare()
        self._take_evicted()
        self._check_emptied()

    # ---- what a scheduler does -------------------------------------------------------------------

    def _begin(self, names: list[bytes], num_unnamed: int) -> None:
        """A request begins: it shares what is cached, and fills the rest."""
        found: list[int] = []
        if names:
            found = list(self._call("find_prefix", names))
            self._expect(found, self._ledger.find(names), FINDS, "find_prefix")
        table = list(found)
        self._tables.append(table)
        if found:
            self._call("share", found)
            self._ledger.hold(found)
            self._compare()
        table += self._allocate(len(names) - len(found) + num_unnamed)
        if len(table) < len(names):  # there was no room
            self._release(table)
            return
        for block, name in list(zip(table, names, strict=False))[len(found) :]:
            self._call("store", block, name)
            if name in self._ledger.named:
                self._ledger.forget([self._ledger.named[name]])
            self._ledger.named[name] = block

    def _allocate(self, count: int) -> list[int]:
        """Take so many, or see that none can be had."""
        ledger = self._ledger
        if count == 0:
            return []
        if count > ledger.num_free:
            self._refused(count)
            return []
        blocks = list(self._call("allocate", count))
        self._check_allocated(count, blocks)
        evicted = ledger.idle[: max(0, count - ledger.num_empty)]
        ledger.forget(evicted)
        ledger.evicted += evicted
        ledger.hold(blocks)
        return blocks

    def _refused(self, count: int) -> None:
        self._history.note(f"pool.allocate({count})")
        try:
            blocks = self._pool.allocate(count)
        except ValueError:
            self._history.lines[-1] += "   raises ValueError, rightly"
            return
        raise Broken(REFUSES, f"{blocks!r}", f"ValueError: {self._ledger.num_free} are free")

    def _check_allocated(self, count: int, blocks: list[int]) -> None:
        ledger = self._ledger
        if len(blocks) != count or len(set(blocks)) != count:
            raise Broken(COUNT, f"{blocks}", f"{count} different ids")
        for block in blocks:
            if not (isinstance(block, int) and 0 <= block < ledger.num_blocks):
                raise Broken(COUNT, f"{block!r}", f"ids from 0 to {ledger.num_blocks - 1}")
            if ledger.owners[block]:
                raise Broken(IN_USE, f"block {block}, which is in use", "a block nobody holds")
        num_evicted = max(0, count - ledger.num_empty)
        taken = [block for block in blocks if block in ledger.idle]
        if len(taken) > num_evicted:
            raise Broken(
                FREE_FIRST,
                f"{len(taken)} of {blocks} were cached: {taken}",
                f"{num_evicted} evicted: {ledger.num_empty} blocks hold nothing",
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

    # ---- what can be seen ------------------------------------------------------------------------

    def _compare(self) -> None:
        """Everything that the pool tells of itself."""
        pool, ledger = self._pool, self._ledger
        self._expect(pool.num_free, ledger.num_free, NUM_FREE, "pool.num_free")
        expected = {block: name for name, block in ledger.named.items()}
        for block, name in dict(pool.hashes).items():
            if expected.get(block) != name and ledger.owners[block]:
                raise Broken(GIVES_WAY, f"block {block} can still be found as {name!r}")
        self._expect(dict(pool.hashes), expected, CACHED, "pool.hashes")
        self._expect(pool.num_cached, len(expected), CACHED, "pool.num_cached")
        evictable = [block for block in range(ledger.num_blocks) if pool.is_evictable(block)]
        self._expect(evictable, sorted(ledger.idle), IDLE, "what pool.is_evictable says yes to")
        self._expect(list(pool.eviction_order), ledger.idle, ORDER, "pool.eviction_order")
        self._check_books()

    def _check_books(self) -> None:
        try:
            self._pool.check(self._tables)
        except InvariantError as error:
            raise Broken(BOOKS, f"InvariantError: {error}", "nothing") from None
        try:
            self._pool.check([*self._tables, [0]])
        except InvariantError:
            return
        raise Broken(
            COMPLAINS, "nothing was raised", "InvariantError: nobody gave that table block 0"
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
