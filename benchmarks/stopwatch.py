"""Where time goes: wraps functions, and adds up the time spent in each but not in the others."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

Sections = Mapping[str, Sequence[tuple[object, str]]]
"""A section's name -> the functions in it, each as the module or class that has it, and its name
there."""


class Stopwatch:
    """Exclusive wall time by section: ``seconds`` add up to the time of the outermost calls.

    On a CPU an operation is done when it returns, so this is exact where a profiler's own cost
    would distort it: a call costs a microsecond more, and there are some thousands a second.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._nested: list[float] = []

    @contextmanager
    def watch(self, sections: Sections) -> Iterator[None]:
        """Time the sections' functions meanwhile."""
        with ExitStack() as stack:
            for section, functions in sections.items():
                for owner, name in functions:
                    timed = self._timed(section, getattr(owner, name))
                    stack.enter_context(patch.object(owner, name, timed))
            yield

    def _timed(self, section: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._nested.append(0.0)
            begun = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - begun
                self.seconds[section] += elapsed - self._nested.pop()
                if self._nested:
                    self._nested[-1] += elapsed

        return timed
