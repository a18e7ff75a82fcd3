"""Check a guesser of speculative decoding. Any guess is accepted, as wrong as it may be.

Whatever a guesser returns, the engine's outputs stay the same. But if it breaks these rules, its
guesses are cut off or dropped, and all that shows it is the time.
"""

import sys
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.speculation.interface import Guesser
from minimal_vllm.step.plan import ScheduledRequest
from minimal_vllm.step.request import Request, Status
from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule
from minimal_vllm_lab.check.search import (
    REPEATABLE,
    History,
    find_lesson,
    find_mistake,
    long_lists,
    shorter_lists,
)

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

CHAPTER = "19-speculation"
VOCAB_SIZE = 4096
"""Number of tokens of the built-in model, whose texts stand behind the requests."""
NAMES = "ABC"
"""Ids of the requests. The id of one that has ended is given again."""
TEXTS = (
    (1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2),
    (1, 2, 5, 1, 2, 5, 1, 2, 5, 1, 2, 5, 1, 2, 5, 1, 2, 5, 1, 2),
    (9, 8, 7, 6, 5, 4, 3, 2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6),
    (4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4),
)
"""Texts that repeat themselves, so that even a lookup in the text itself has something to guess."""

ONE_ROW_EACH = Rule(
    "propose() returns a row of guesses for each request, in the order of the entries.",
    "The engine adds each row to the request at the same index. Give an empty row where there is "
    "nothing to guess. A row can be sliced, as a list, a tuple or an array can.",
    CHAPTER,
)
AT_MOST = Rule(
    "A row has at most as many guesses as counts allows.",
    "The others are cut off: the token budget or the length of the output leaves no room for them.",
    CHAPTER,
)
TOKENS = Rule(
    "A guess is a token id: an integer from 0 to below the size of the vocabulary.",
    f"Nothing else can be computed. Of other integers the engine drops the rest of the row, and "
    f"anything else loses the guesses of all requests. (The check has {VOCAB_SIZE:,} tokens.)",
    CHAPTER,
)
READS_ONLY = Rule(
    "propose() changes neither the requests nor the entries or counts that it gets.",
    "They are the engine's own. A guess that is appended to a request's tokens would become a part "
    "of its output.",
    CHAPTER,
)
OWN_TOKENS = Rule(
    "The guesses for a request depend on its own tokens alone.",
    "Other requests come and go, and the batch is in another order in each step: remember by "
    "request, never by index. What one user wrote must not show in the speed of another's answer.",
    CHAPTER,
)
FORGETS = Rule(
    "After forget(request), nothing is left of it.",
    "It has ended, or it has lost its blocks and begins anew. The id of one that has ended may be "
    "given to another request, and what is kept of each of a million requests fills the memory.",
    CHAPTER,
)
KNOWN_CASES = [
    # No request samples: all compute their prompts.
    [("step", 0, 3)],
    # A request is aborted, or loses its blocks, before anything was guessed for it.
    [("start", 0, 0), ("preempt", 0, 0), ("end", 0, 0)],
    # Two texts begin alike, and go on differently.
    [("start", 0, 0), ("start", 1, 1), *[("step", 0, 3)] * 6],
    # Not all requests sample in each step, and they come in another order.
    [("start", 0, 0), ("start", 1, 2), *[("step", 0, 4), ("part of a step", 2, 4)] * 4],
    # An id is given again.
    [("start", 0, 0), *[("step", 0, 3)] * 5, ("end", 0, 0), ("start", 0, 1), *[("step", 0, 3)] * 3],
    # A request loses its blocks, and goes on with all its tokens.
    [("start", 0, 2), *[("step", 0, 2)] * 6, ("preempt", 0, 0), *[("step", 0, 2)] * 4],
]

Operation = tuple[str, int, int]
"""The kind of operation, the number of a request, and the number of a text or of guesses."""


def check_guesser(
    make: Callable[[], Guesser], *, examples: int = 60, seed: int | None = None
) -> Lesson | None:
    """Check a guesser, and return a lesson about a broken rule, or None if all hold.

    Args:
        make: the guesser's class. ``make()`` must return a new guesser.
        examples: number of random histories to try.
        seed: seed of the random cases. Default: the same cases in every run.
    """

    def run(operations: list[Operation], history: History) -> None:
        history.note(f"guesser = {getattr(make, '__name__', 'make')}()")
        driver = _Driver(make, history)
        for operation in operations:
            driver.apply(*operation)
        for number in range(len(NAMES)):
            driver.apply("end", number, 0)

    return find_mistake(lambda history: _check_separate(make, history)) or find_lesson(
        _cases(), run, examples=examples, seed=seed, shorter=shorter_lists, known=KNOWN_CASES
    )


def _cases() -> "SearchStrategy[list[Operation]]":
    from hypothesis import strategies as st

    kinds = ["start", "step", "step", "part of a step", "part of a step", "preempt", "end"]
    numbers = st.integers(0, len(NAMES) - 1)
    return long_lists(st.tuples(st.sampled_from(kinds), numbers, st.integers(0, 4)), 24)


def _check_separate(make: Callable[[], Guesser], history: History) -> None:
    """Check that what one guesser has seen does not show in another."""
    before, after = _start(0, 2), _start(0, 2)
    history.note(f"guesser.propose([{_describe(before)}], [3])")
    expected = _rows(make(), [before], [3])
    other, first = make(), _start(1, 0)
    for _ in range(8):
        history.lines = [f"guesser.propose([{_describe(first)}], [3])"]
        _rows(other, [first], [3])
        first.token_ids.append(TEXTS[0][first.num_tokens])
    history.lines = [f"one guesser has seen {_describe(first)}"]
    history.note(f"another's propose([{_describe(after)}], [3])")
    found = _rows(make(), [after], [3])
    if found != expected:
        raise Broken(REPEATABLE, f"{found}", f"{expected}, as before the first had seen anything")


class _Driver:
    """Makes the calls that the scheduler makes, and compares guessers that see different parts.

    Attributes:
        running: requests by their number.
    """

    def __init__(self, make: Callable[[], Guesser], history: History) -> None:
        self.running: dict[int, Request] = {}
        self._make, self._history = make, history
        self._guesser, self._twin = make(), make()  # the twin gets the same calls
        self._lonely = [make() for _ in NAMES]
        """Guessers that get the calls for one id only, from the first on."""
        self._fresh = [make() for _ in NAMES]
        """Guessers that get the calls for one request only, since it was forgotten."""
        self._texts: dict[int, Sequence[int]] = {}
        self._references: dict[int, int] = {}
        """Number of references to each request before any guesser saw it."""

    def apply(self, kind: str, number: int, choice: int) -> None:
        """Apply an operation; do nothing if the state does not allow it."""
        if kind == "start" and number not in self.running:
            self._texts[number] = TEXTS[choice % len(TEXTS)]
            self.running[number] = _start(number, choice)
            self._references[number] = self._count_references(number)
        elif kind == "step":
            self._step(list(self.running), choice)
        elif kind == "part of a step":
            self._step([each for each in reversed(self.running) if each != number], choice)
        elif kind == "preempt" and number in self.running:
            self._forget(number)
        elif kind == "end" and number in self.running:
            self._forget(number)
            del self.running[number]

    def _step(self, numbers: Sequence[int], most: int) -> None:
        """Let guessers propose for these requests, of which each then gets some tokens."""
        requests = [self.running[number] for number in numbers]
        counts = [max(most - index, 0) for index in range(len(numbers))]
        described = ", ".join(map(_describe, requests))
        self._history.note(f"guesser.propose([{described}], {counts})")
        rows = _rows(self._guesser, requests, counts)
        self._history.lines[-1] += f" -> {rows}"
        if (other := _rows(self._twin, requests, counts)) != rows:
            raise Broken(REPEATABLE, f"{rows}, and {other} by another guesser of the class")
        for number, request, count, row in zip(numbers, requests, counts, rows, strict=True):
            (lonely,) = _rows(self._lonely[number], [request], [count])
            (fresh,) = _rows(self._fresh[number], [request], [count])
            if lonely != fresh:
                found = f"{row} for {request.request_id}"
                raise Broken(FORGETS, found, f"{fresh}, as by a guesser that never saw it before")
            if row != fresh:
                found = f"{row} for {request.request_id}"
                raise Broken(OWN_TOKENS, found, f"{fresh}, as if it were alone")
        for number, request in zip(numbers, requests, strict=True):
            length = request.num_tokens  # at the end of its text, it gets none
            request.token_ids.extend(self._texts[number][length : length + 1 + most // 2])

    def _forget(self, number: int) -> None:
        request = self.running[number]
        self._history.note(f"guesser.forget({request.request_id})")
        for guesser in (self._guesser, self._twin, self._lonely[number]):
            guesser.forget(request)
        self._fresh[number] = self._make()
        name = request.request_id
        del request
        if self._count_references(number) > self._references[number]:
            raise Broken(FORGETS, f"the guesser still refers to {name}", "no reference to it")

    def _count_references(self, number: int) -> int:
        return sys.getrefcount(self.running[number])


def _start(number: int, choice: int) -> Request:
    text = TEXTS[choice % len(TEXTS)]
    prompt = array("i", text[: 1 + choice % 4])
    return Request(
        request_id=NAMES[number],
        token_ids=prompt,
        num_prompt_tokens=len(prompt),
        params=SamplingParams(max_tokens=100),
        arrival=number,
        max_num_tokens=100,
        status=Status.RUNNING,
        block_table=array("i", [number]),
    )


def _rows(guesser: Guesser, requests: Sequence[Request], counts: Sequence[int]) -> list[list[int]]:
    """Let a guesser propose, and return its rows as lists.

    Raises:
        Broken: a row is missing or unusable, or an argument was changed.
    """
    entries = [ScheduledRequest(each, each.num_tokens - 1, 1, num_logits=1) for each in requests]
    given, allowed = list(entries), list(counts)
    before = _state(given, allowed)
    proposed = guesser.propose(given, allowed)
    if (after := _state(given, allowed)) != before:
        raise Broken(READS_ONLY, _difference(before, after))
    rows = _as_lists(proposed, len(requests))
    for request, row, count in zip(requests, rows, counts, strict=True):
        of_request = f"{row} for {request.request_id}"
        if len(row) > count:
            raise Broken(AT_MOST, of_request, f"at most {count}")
        if not all(_is_token(guess) for guess in row):
            raise Broken(TOKENS, of_request, f"integers from 0 to {VOCAB_SIZE - 1:,}")
    return [[int(guess) for guess in row] for row in rows]


def _as_lists(proposed: Any, num_requests: int) -> list[list[Any]]:
    try:
        rows = [list(row[:]) for row in proposed]
    except TypeError:
        raise Broken(ONE_ROW_EACH, f"{proposed!r}", "a list of lists of token ids") from None
    if len(rows) != num_requests:
        raise Broken(ONE_ROW_EACH, f"{len(rows)} rows: {rows}", f"{num_requests}")
    return rows


def _is_token(guess: Any) -> bool:
    return hasattr(guess, "__index__") and 0 <= guess < VOCAB_SIZE


def _state(entries: Sequence[ScheduledRequest], counts: Sequence[int]) -> dict[str, Any]:
    """Return all that a guesser may read, by its name."""
    state: dict[str, Any] = {"entries": list(map(id, entries)), "counts": list(counts)}
    for entry in entries:
        request = entry.request
        name = request.request_id
        state[f"{name}.token_ids"] = request.token_ids.tolist()
        state[f"{name}.block_table"] = request.block_table.tolist()
        for field in ("num_computed_tokens", "num_pending_tokens", "status", "max_num_tokens"):
            state[f"{name}.{field}"] = getattr(request, field)
        for field in ("start", "num_new", "num_logits", "guesses"):
            state[f"entry of {name}.{field}"] = getattr(entry, field)
    return state


def _difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    changed = [name for name in before if before[name] != after.get(name)]
    name = changed[0] if changed else "entries"
    if name == "entries":
        return "the list of entries has changed"
    return f"{name} was {before[name]}, and is {after[name]}"


def _describe(request: Request) -> str:
    return f"{request.request_id}: {' '.join(map(str, request.token_ids))}"
