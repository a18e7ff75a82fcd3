"""Check an eviction strategy. Any order is accepted, unless least recently used is required."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from minimal_vllm.cache.eviction import EvictionStrategy
from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule
from minimal_vllm_lab.check.search import History, find_lesson, long_lists, shorter_lists

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

CHAPTER = "06-prefix-caching"
MEMBERS = Rule(
    "The strategy contains exactly the evictable blocks: inserted, and neither removed nor evicted "
    "since.",
    "The pool asks it how many blocks it can still allocate. An extra block is held by a request; "
    "a missing block is lost.",
    CHAPTER,
)
EVICTS = Rule(
    "evict() removes exactly one evictable block, and returns it.",
    "The pool gives that block to a request right away.",
    CHAPTER,
)
IN_ORDER = Rule(
    "in_order() lists all evictable blocks, the next one to be evicted first.",
    "The view shows this order, and evict() must follow it.",
    CHAPTER,
)
LEAST_RECENT = Rule(
    "Least recently used: the block that was released longest ago is evicted first.",
    "Recently used content is more likely to be needed again. A block that is used again moves to "
    "the end of the queue when it is released.",
    CHAPTER,
)
REPORTS_ONLY = Rule(
    "in_order() returns a new list, and changes nothing.",
    "The view asks for it after each step. A list that is the strategy's own could be changed by "
    "whoever gets it.",
    CHAPTER,
)
SEPARATE = Rule(
    "Two strategies of one class share nothing.",
    "Each engine has a pool of its own. State that is kept in the class or in the module belongs "
    "to all of them: keep it in self.",
    CHAPTER,
)
KNOWN_CASES = [
    # Block 0 is released first, but used again afterward.
    [("release", 0), ("release", 1), ("use", 0), ("release", 0), ("evict", 0)],
    # Block 0 is released first, but its content is dropped.
    [("release", 0), ("release", 1), ("drop", 0), ("evict", 0), ("release", 0)],
]


def check_eviction(
    make: Callable[[], EvictionStrategy],
    *,
    least_recently_used: bool = False,
    examples: int = 100,
    seed: int | None = None,
) -> Lesson | None:
    """Check an eviction strategy, and return a lesson about a broken rule, or None if all hold.

    Args:
        make: the strategy's class. ``make()`` must return a new strategy.
        least_recently_used: require LRU order. Default: any order that ``in_order`` announces.
        examples: number of random histories to try.
        seed: seed of the random cases. Default: the same cases in every run.
    """

    def run(operations: list[tuple[str, int]], history: History) -> None:
        name = getattr(make, "__name__", "make")
        _check_separate(make, name)
        history.note(f"strategy = {name}()")
        driver = _Driver(make(), history, least_recently_used)
        for kind, block in operations:
            driver.apply(kind, block)
        driver.finish()

    return find_lesson(
        _cases(), run, examples=examples, seed=seed, shorter=shorter_lists, known=KNOWN_CASES
    )


def _check_separate(make: Callable[[], EvictionStrategy], name: str) -> None:
    other, new = make(), make()
    other.insert(0)
    if list(new.in_order()):
        history = f"one, other = {name}(), {name}(); one.insert(0); other"
        raise Broken(SEPARATE, f"{history} contains {list(new.in_order())}", "no block")
    other.remove(0)


def _cases() -> "SearchStrategy[list[tuple[str, int]]]":
    from hypothesis import strategies as st

    kinds = ["release", "release", "use", "evict", "drop", "hit in use"]
    return long_lists(st.tuples(st.sampled_from(kinds), st.integers(0, 5)), 20)


class _Driver:
    """Make the calls that a block pool makes, and check the strategy after each of them."""

    def __init__(
        self, strategy: EvictionStrategy, history: History, least_recently_used: bool
    ) -> None:
        self._strategy, self._history = strategy, history
        self._least_recently_used = least_recently_used
        self._released: list[int] = []
        """The evictable blocks, in order of release."""
        self._compare()

    def apply(self, kind: str, block: int) -> None:
        """Apply an operation to a block; do nothing if the block's state does not allow it."""
        is_evictable = block in self._released
        if kind == "release" and not is_evictable:
            self._call("insert", block)
            self._released.append(block)
        elif kind == "use" and is_evictable:
            self._call("hit", block)
            self._remove(block)
        elif kind == "hit in use" and not is_evictable:
            self._call("hit", block)
        elif kind == "drop" and is_evictable:
            self._call("forget", block)
            self._remove(block)
        elif kind == "evict" and self._released:
            self._evict()
        else:
            return
        self._compare()

    def finish(self) -> None:
        """Evict all remaining blocks."""
        while self._released:
            self._evict()
            self._compare()

    def _remove(self, block: int) -> None:
        self._call("remove", block)
        self._released.remove(block)

    def _evict(self) -> None:
        order = list(self._strategy.in_order())
        block = self._history.call("strategy.evict", self._strategy.evict)
        if block not in self._released:
            raise Broken(EVICTS, f"{block!r}", f"one of {self._released}")
        if self._least_recently_used and block != self._released[0]:
            raise Broken(LEAST_RECENT, f"{block}", f"{self._released[0]}, of {self._released}")
        if block != order[0]:
            raise Broken(IN_ORDER, f"{block}", f"{order[0]}: in_order() was {order}")
        self._released.remove(block)
        self._call("forget", block)

    def _compare(self) -> None:
        strategy, expected = self._strategy, sorted(self._released)
        members = [block for block in range(6) if block in strategy]
        if members != expected:
            raise Broken(MEMBERS, f"it contains {members}", f"{expected}")
        if len(strategy) != len(expected):
            raise Broken(MEMBERS, f"its length is {len(strategy)}", f"{len(expected)}: {expected}")
        order = strategy.in_order()
        if not isinstance(order, list):
            raise Broken(REPORTS_ONLY, f"a {type(order).__name__}", "a list")
        if sorted(order) != expected:
            raise Broken(IN_ORDER, f"{order}", f"{expected}, in some order")
        order.clear()
        if len(strategy) != len(expected):
            found = f"after in_order(), and after its list was cleared, {len(strategy)} are left"
            raise Broken(REPORTS_ONLY, found, f"{len(expected)}: {expected}")

    def _call(self, name: str, block: int) -> None:
        self._history.call(f"strategy.{name}", getattr(self._strategy, name), block)
