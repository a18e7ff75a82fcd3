from types import SimpleNamespace

import pytest

from minimal_vllm.server import pace as pace_module
from minimal_vllm.server.pace import Pace, PaceState
from tests.trace.records import step_record


@pytest.fixture
def pace():
    return Pace()


def test_by_default_an_engine_never_waits(pace):
    pace.step_begins()
    assert pace.seconds_to_wait() == 0


def test_a_paused_engine_may_step_only_as_often_as_it_was_allowed(pace):
    pace.change(PaceState(paused=True))
    assert pace.seconds_to_wait() is None
    pace.allow_steps(2)
    for _ in range(2):
        assert pace.seconds_to_wait() == 0
        pace.step_begins()
    assert pace.seconds_to_wait() is None


def test_steps_that_were_allowed_are_forgotten_when_the_engine_goes_on(pace):
    pace.allow_steps(5)
    pace.change(PaceState())
    pace.change(PaceState(paused=True))
    assert pace.seconds_to_wait() is None


def test_the_interval_counts_from_the_last_steps_beginning(pace, monkeypatch):
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=100.0)
    monkeypatch.setattr(pace_module, "time", clock)
    pace.change(PaceState(interval=60))
    assert pace.seconds_to_wait() == 0
    pace.step_begins()
    clock.now += 15
    assert pace.seconds_to_wait() == 45


@pytest.mark.parametrize(
    ("occasion", "fields"),
    [("preemption", {"preempted": ("a",)}), ("eviction", {"evicted_blocks": (3,)})],
)
def test_the_engine_pauses_at_the_occasion_and_at_no_other(pace, occasion, fields):
    others = {"preempted": ("a",), "evicted_blocks": (3,)}.items() - fields.items()
    pace.change(PaceState(interval=1, until=occasion))
    assert not pace.sees(step_record(**dict(others)))
    assert pace.sees(step_record(**fields))
    assert pace.state == PaceState(paused=True, interval=1)
