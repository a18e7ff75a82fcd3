"""Stopwatch that measures the exclusive time of functions."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

Sections = Mapping[str, Sequence[tuple[object, str]]]
"""Section name -> its functions, each as the module or class that holds it and its name there."""


class Stopwatch:
    """Exclusive wall time by section.

    ``seconds`` of all sections add up to the time of the outermost calls. On a CPU, an operation is
    done when it returns, so the result is exact, while a profiler's own cost would distort it. Each
    timed call costs an additional microsecond, and there are some thousands of calls per second.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._nested: list[float] = []

    @contextmanager
    def watch(self, sections: Sections) -> Iterator[None]:
        """Time the sections' functions inside the ``with`` block."""
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
