"""Search for a history that breaks a rule, and shrink it to the smallest one."""

import sys
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

T = TypeVar("T")

UNWRITTEN = Rule(
    "There is something left to write.",
    "The check calls this function, and it only raises NotImplementedError.",
)
RAISES = Rule(
    "None of these calls may raise an exception.",
    "An unexpected exception ends the step, and with it all requests in the batch.",
)
RETURNS = Rule(
    "Every call returns.",
    "You stopped it with Ctrl-C. Perhaps a loop waits for a condition that never becomes true.",
)
REPEATABLE = Rule(
    "The same calls on a new object give the same results.",
    "Some state outlives the object, such as a list in the class or in the module, or the code "
    "uses random numbers. Keep all state in self: two engines in one process would otherwise share "
    "it.",
)
AT_ONCE = (UNWRITTEN, RETURNS)
"""Rules for which a smaller case would reveal nothing new, so the search stops at once."""
NOT_THE_USERS = (
    Path(__file__).parents[1],
    *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")),
)
"""Folders of the lab and of installed libraries: their frames in a traceback are skipped."""


class History:
    """The calls made so far, written as Python, with their results."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        """Append a line that is not a call."""
        self.lines.append(line)

    def call(self, name: str, function: Callable[..., T], *arguments: Any) -> T:
        """Call ``function``, and append the call and its result to the history.

        Args:
            name: the name to write, such as ``pool.allocate``.
            function: the function to call.
            *arguments: its arguments.
        """
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
    seed: int | None = None,
    shorter: Callable[[T], Iterable[T]] = lambda _: (),
    known: Sequence[T] = (),
) -> Lesson | None:
    """Try many cases, and return a lesson about the smallest one that breaks a rule, or None.

    Args:
        cases: Hypothesis strategy for random cases.
        run: runs one case, and raises ``Broken`` if a rule does not hold. Any other exception is
            reported as a mistake of the checked class.
        examples: number of random cases to try.
        seed: seed of the random cases. Default: the same cases in every run.
        shorter: yields smaller variants of a case, which are tried after Hypothesis stops
            shrinking.
        known: cases to try first, because they reveal common mistakes.
    """
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis.errors import Flaky

    for case in known:
        lesson = find_mistake(partial(run, case))
        if lesson is not None:
            return _repeat_and_shorten(case, lesson, run, shorter)
    found: list[tuple[T, Lesson]] = []

    @settings(
        max_examples=examples,
        derandomize=seed is None,
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
        (attempt if seed is None else seeded(seed)(attempt))()
    except _EnoughError:
        return found[-1][1]
    except (_FoundError, Flaky):
        return _repeat_and_shorten(*found[-1], run, shorter)
    return None


class _FoundError(Exception):
    """Raised inside Hypothesis when a case breaks a rule."""


class _EnoughError(BaseException):
    """Raised to stop the search at once: Hypothesis does not catch a ``BaseException``."""


def _repeat_and_shorten(
    case: T,
    lesson: Lesson,
    run: Callable[[T, History], None],
    shorter: Callable[[T], Iterable[T]],
) -> Lesson:
    """Return the lesson of ``_shorten``, or another one if the same case can also pass."""
    if lesson.rule in AT_ONCE:
        return lesson
    if any(find_mistake(partial(run, case)) is None for _ in range(3)):
        return Lesson(REPEATABLE, lesson.history, "a different result the second time", "")
    return _shorten(case, lesson, run, shorter)


def _shorten(
    case: T,
    lesson: Lesson,
    run: Callable[[T, History], None],
    shorter: Callable[[T], Iterable[T]],
) -> Lesson:
    """Return a lesson with a case that is as short as possible and still breaks a rule."""
    if lesson.rule in AT_ONCE:
        return lesson
    for candidate in shorter(case):
        found = find_mistake(partial(run, candidate))
        if found is not None:
            return _shorten(candidate, found, run, shorter)
    return lesson


def shorter_lists(items: Sequence[T]) -> Iterator[list[T]]:
    """Yield copies of a sequence without one, two or four neighboring items."""
    return (
        [*items[:start], *items[start + count :]]
        for count in (4, 2, 1)
        for start in range(len(items) + 1 - count)
    )


def long_lists(items: "SearchStrategy[T]", most: int) -> "SearchStrategy[list[T]]":
    """Return a Hypothesis strategy for lists with ``most // 2`` to ``most`` items.

    Short lists reveal little, and ``shorter_lists`` removes items that turn out to be unnecessary.
    """
    from hypothesis import strategies as st

    return st.lists(items, min_size=most // 2, max_size=most)


def find_mistake(run: Callable[[History], None]) -> Lesson | None:
    """Run one case, and return a lesson if it breaks a rule or raises, or None."""
    history = History()
    try:
        with _known_memory():
            run(history)
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        broken = error if isinstance(error, Broken) else _blame(error, history)
        lines = [] if broken.rule is UNWRITTEN else history.lines
        return Lesson(broken.rule, lines, broken.found, broken.expected)
    return None


@contextmanager
def _known_memory() -> Iterator[None]:
    """Fill what ``torch.empty`` returns with NaN, or with the largest integer.

    Whoever reads memory that nobody wrote then gets the same lesson in every run.
    """
    torch = sys.modules.get("torch")  # checks that need none run where there is none
    if torch is None:
        yield
        return
    was_on = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deterministic")
            yield
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=only_warns)


def _blame(error: BaseException, history: History) -> Broken:
    """Turn an exception into a broken rule that names the last line of the user's own code."""
    while type(error).__module__.startswith("triton") and isinstance(error.__cause__, Exception):
        error = error.__cause__  # Triton's interpreter wraps exceptions raised in a kernel
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if not _is_ours(each.filename)]
    last = (own or frames)[-1]
    where = f"{Path(last.filename).name}, line {last.lineno}, in {last.name}"
    if isinstance(error, NotImplementedError):
        return Broken(UNWRITTEN, f"{where}: {error}".removesuffix(": "))
    if isinstance(error, KeyboardInterrupt):
        return Broken(RETURNS, f"stopped at {where}:  {last.line}")
    if history.lines and " -> " not in history.lines[-1]:
        history.lines[-1] += f"   raises {type(error).__name__}"
    return Broken(RAISES, f"{type(error).__name__}: {error}\n{where}:  {last.line}")


def _is_ours(filename: str) -> bool:
    """Return whether a file belongs to the lab or to a library, and not to the user."""
    path = Path(filename)
    return any(map(path.is_relative_to, NOT_THE_USERS)) or not path.exists()
