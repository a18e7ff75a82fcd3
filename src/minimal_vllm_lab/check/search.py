"""Looking for a history that breaks a rule, and for the smallest such."""

import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

T = TypeVar("T")

UNWRITTEN = Rule("There is something left to write.", "The check calls it, and it only raises.")
RAISES = Rule(
    "No call of this history may raise.",
    "An exception that nobody expects ends the step, and all requests that are in it.",
)
RETURNS = Rule(
    "Every call returns.",
    "You have stopped it (Ctrl-C). Perhaps a loop waits for something that never comes.",
)
REPEATABLE = Rule(
    "The same calls on a new object give the same results.",
    "Something outlives the object, such as a list in the class or in the module, or it draws "
    "random numbers: keep all state in self. Two engines in one process would share it.",
)
AT_ONCE = (UNWRITTEN, RETURNS)
"""No smaller case would say more."""
NOT_THE_READERS = (
    Path(__file__).parents[1],
    *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")),
)


class History:
    """The calls so far, as a reader would write them, and what they gave."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        """Something that happened, beside the calls."""
        self.lines.append(line)

    def call(self, name: str, function: Callable[..., T], *arguments: Any) -> T:
        """Call ``function``, which the reader knows by ``name``."""
        self.lines.append(f"{name}({', '.join(map(repr, arguments))})")
        result = function(*arguments)
        if result is not None:
            self.lines[-1] += f" -> {result!r}"
        return result


def find_lesson(
    cases: "SearchStrategy[T]",
    run: Callable[[T, History], None],
    *,
    examples: int,
    shorter: Callable[[T], Iterable[T]] = lambda _: (),
    known: Sequence[T] = (),
) -> Lesson | None:
    """Try many cases; the smallest one that breaks a rule, or None.

    Args:
        cases: what to choose from.
        run: plays one, and raises ``Broken`` where a rule does not hold. Whatever else it raises
            is taken for the part's fault.
        examples: how many.
        shorter: gives the case with less in it, in several ways: Hypothesis gives up early.
        known: cases that are tried first, because much goes wrong in them.
    """
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis.errors import Flaky

    for case in known:
        lesson = find_mistake(partial(run, case))
        if lesson is not None:
            return _shorten(case, lesson, run, shorter)
    found: list[tuple[T, Lesson]] = []

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(cases)
    def attempt(case: T) -> None:
        lesson = find_mistake(partial(run, case))
        if lesson is not None:
            found.append((case, lesson))
            raise _EnoughError if lesson.rule in AT_ONCE else _FoundError

    try:
        attempt()
    except _EnoughError:
        return found[-1][1]
    except (_FoundError, Flaky):
        case, lesson = found[-1]
        if any(find_mistake(partial(run, case)) != lesson for _ in range(3)):
            return Lesson(REPEATABLE, lesson.history, "another result the second time", "")
        return _shorten(case, lesson, run, shorter)
    return None


class _FoundError(Exception):
    """There is a lesson."""


class _EnoughError(BaseException):
    """There is one that no smaller case would improve: Hypothesis lets this pass."""


def _shorten(
    case: T,
    lesson: Lesson,
    run: Callable[[T, History], None],
    shorter: Callable[[T], Iterable[T]],
) -> Lesson:
    """Leave out what is not needed to break a rule."""
    if lesson.rule in AT_ONCE:
        return lesson
    for candidate in shorter(case):
        found = find_mistake(partial(run, candidate))
        if found is not None:
            return _shorten(candidate, found, run, shorter)
    return lesson


def shorter_lists(items: Sequence[T]) -> Iterator[list[T]]:
    """The sequence without some neighbours, wherever in it."""
    return (
        [*items[:start], *items[start + count :]]
        for count in (4, 2, 1)
        for start in range(len(items) + 1 - count)
    )


def long_lists(items: "SearchStrategy[T]", most: int) -> "SearchStrategy[list[T]]":
    """Lists of so many items or half as many: in short ones little happens.

    What is not needed in one goes by ``shorter_lists``.
    """
    from hypothesis import strategies as st

    return st.lists(items, min_size=most // 2, max_size=most)


def find_mistake(run: Callable[[History], None]) -> Lesson | None:
    """What there is to learn from one case, or None."""
    history = History()
    try:
        run(history)
    except (Exception, KeyboardInterrupt) as error:
        broken = error if isinstance(error, Broken) else _blame(error, history)
        lines = [] if broken.rule is UNWRITTEN else history.lines
        return Lesson(broken.rule, lines, broken.found, broken.expected)
    return None


def _blame(error: BaseException, history: History) -> Broken:
    """The exception, with the last line of the reader's own that led to it."""
    while type(error).__module__.startswith("triton") and isinstance(error.__cause__, Exception):
        error = error.__cause__  # its interpreter wraps what is raised in a kernel
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if not _is_ours(each.filename)]
    place = (own or frames)[-1]
    where = f"{Path(place.filename).name}, line {place.lineno}, in {place.name}"
    if isinstance(error, NotImplementedError):
        return Broken(UNWRITTEN, f"{where}: {error}")
    if isinstance(error, KeyboardInterrupt):
        return Broken(RETURNS, f"it was at {where}:  {place.line}")
    if history.lines and " -> " not in history.lines[-1]:
        history.lines[-1] += f"   raises {type(error).__name__}"
    return Broken(RAISES, f"{type(error).__name__}: {error}\n{where}:  {place.line}")


def _is_ours(filename: str) -> bool:
    """Whether a file is the engine's or a library's, and not the reader's."""
    path = Path(filename)
    return any(map(path.is_relative_to, NOT_THE_READERS)) or not path.exists()
