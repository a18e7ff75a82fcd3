"""Check of the exercise guess-and-check: n-gram lookup, and which guesses are kept."""

import time
from array import array
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

from minimal_vllm.speculation.ngram import MAX_PLACES, NOWHERE
from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule
from minimal_vllm_lab.check.search import History, find_lesson, find_mistake

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

CHAPTER = "19-speculation"
MATCH = Rule(
    "find returns the place after the longest match, among the most recent occurrences.",
    "The longer the match, the more probably the text goes on as it did. Of equals, the latest.",
    CHAPTER,
)
PLACES = Rule(
    "find compares at most MAX_PLACES occurrences, the most recent first.",
    "In a text of one repeated line, the last tokens occurred at thousands of places. A step must "
    "not look at all of them.",
    CHAPTER,
)
FLAT = Rule(
    "The time of a step's lookup does not depend on the length of the text.",
    "A lookup that reads a text of 32,000 tokens in each step costs more than it saves.",
    CHAPTER,
)
KEPT = Rule(
    "Tokens are kept up to the first that differs from its guess, and that one is kept too.",
    "It was sampled after right tokens alone. All behind it were computed for another text.",
    CHAPTER,
)
MAX_SLOWDOWN = 20
"""Maximum time of a lookup in a text 64 times as long, relative to the short text."""


@dataclass(frozen=True)
class Case:
    """A text to search, and a step's guesses and sampled tokens."""

    tokens: tuple[int, ...]
    shortest: int
    longest: int
    guesses: tuple[int, ...]
    sampled: tuple[int, ...]
    """One more than the guesses; -1 where no token could be sampled."""


def check_guesses(module: ModuleType, seed: int | None = None) -> Lesson | None:
    """Compare lookups with a search of the whole text, and kept tokens with their definition.

    Returns:
        A lesson about a difference, or None.
    """

    def run(case: Case, history: History) -> None:
        _check_lookup(module, case, history)
        _check_kept(module, case, history)

    # Measured times differ the second time, so nothing is searched for a smaller case.
    return (
        find_lesson(_cases(), run, examples=200, seed=seed)
        or find_mistake(partial(_check_many_places, module))
        or find_mistake(partial(_check_time, module))
    )


def _cases() -> "SearchStrategy[Case]":
    from hypothesis import strategies as st

    tokens = st.lists(st.integers(0, 2), max_size=20).map(tuple)
    shortest = st.integers(1, 3)
    rows = st.integers(0, 3).flatmap(
        lambda count: st.tuples(
            st.tuples(*[st.integers(0, 1)] * count),
            st.tuples(*[st.integers(-1, 1)] * (count + 1)),
        )
    )
    return st.builds(
        lambda tokens, shortest, more, row: Case(tokens, shortest, shortest + more, *row),
        tokens,
        shortest,
        st.integers(0, 2),
        rows,
    )


def _check_lookup(module: ModuleType, case: Case, history: History) -> None:
    history.note(f"index = MyIndex({case.shortest}, {case.longest}); text = []")
    index, text = module.MyIndex(case.shortest, case.longest), array("i")
    for token in case.tokens:
        text.append(token)
        history.note(f"text.append({token}); index.extend(text)")
        index.extend(text)
        found = history.call("index.find", lambda _: index.find(text), text.tolist())
        expected = _longest_match(text.tolist(), case.shortest, case.longest)
        if found != expected:
            raise Broken(MATCH, f"{found}", f"{expected}")


def _check_many_places(module: ModuleType, history: History) -> None:
    """Check texts whose longest match is just among, and just not among, the places compared."""
    for between in (MAX_PLACES - 1, MAX_PLACES):
        text = array("i", [1, 0, *[2, 0] * between, 1, 0])
        index = module.MyIndex(1, 2)
        history.lines = [f"index = MyIndex(1, 2); text = {text.tolist()}; index.extend(text)"]
        index.extend(text)
        found = history.call("index.find", lambda _, of=index, text=text: of.find(text), "text")
        expected = _longest_match(text.tolist(), 1, 2)
        if found != expected:
            raise Broken(PLACES, f"{found}", f"{expected}, with {MAX_PLACES=}")


def _longest_match(tokens: list[int], shortest: int, longest: int) -> int:
    """Return the same by trying all places."""
    places = []
    for place in range(shortest, len(tokens)):
        length = 0
        while length < min(place, longest) and tokens[place - 1 - length] == tokens[-1 - length]:
            length += 1
        if length >= shortest:
            places.append((length, place))
    return max(places[-MAX_PLACES:])[1] if places else NOWHERE


def _check_kept(module: ModuleType, case: Case, history: History) -> None:
    rows = [[token] if token >= 0 else [] for token in case.sampled]
    found = history.call("count_kept", module.count_kept, list(case.guesses), rows)
    expected = 0
    for row, guess in zip(rows, [*case.guesses, None], strict=True):
        expected += bool(row)
        if row != [guess]:
            break
    if found != expected:
        raise Broken(KEPT, f"{found} tokens", f"{expected} tokens")


def _check_time(module: ModuleType, history: History) -> None:
    history.note("lookups in texts of 500 and 32,000 tokens")
    short, long = (_seconds(module, length) for length in (500, 32_000))
    if long > MAX_SLOWDOWN * short:
        raise Broken(FLAT, f"{long / short:.0f} times as long in the long text", "about as long")


def _seconds(module: ModuleType, length: int) -> float:
    """Return the CPU time of a lookup in a text of this length, the least of several."""
    index, text = module.MyIndex(3, 5), array("i", [i * i % 997 for i in range(length)])
    index.extend(text)
    times = []
    for step in range(30):
        text.append(step * step % 997)
        began = time.thread_time()
        index.extend(text)
        index.find(text)
        times.append(time.thread_time() - began)
    return min(times)
