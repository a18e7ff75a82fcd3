from types import SimpleNamespace

import pytest

from benchmarks import stopwatch
from benchmarks.stopwatch import Stopwatch


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for ``clock.now += …``."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: clock.now)
    return clock


def test_time_is_counted_in_the_innermost_section_only(clock):
    def inner():
        clock.now += 2

    def outer():
        clock.now += 1
        functions.inner()
        functions.inner()
        clock.now += 4

    functions = SimpleNamespace(inner=inner, outer=outer)
    watch = Stopwatch()
    with watch.watch({"a": [(functions, "outer")], "b": [(functions, "inner")]}):
        functions.outer()
    assert watch.seconds == {"a": 5, "b": 4}
    assert (functions.inner, functions.outer) == (inner, outer)


def test_a_section_that_fails_is_counted_and_does_not_disturb_the_next(clock):
    def fail():
        clock.now += 3
        raise KeyError

    functions = SimpleNamespace(fail=fail)
    watch = Stopwatch()
    with watch.watch({"a": [(functions, "fail")]}):
        for _ in range(2):
            with pytest.raises(KeyError):
                functions.fail()
    assert watch.seconds == {"a": 6}
