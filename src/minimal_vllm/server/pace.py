"""Pace of the engine: step after step, at intervals, or one step at a time."""

import time
from dataclasses import dataclass
from typing import Literal

from minimal_vllm.trace.step_record import StepRecord

Occasion = Literal["preemption", "eviction"]


@dataclass(frozen=True, slots=True)
class PaceState:
    """Pace that was chosen."""

    paused: bool = False
    interval: float = 0.0
    """Minimum number of seconds from the start of one step to the start of the next."""
    until: Occasion | None = None
    """Event to run to, without waiting between steps; the engine pauses after it. None: the engine
    doesn't pause by itself."""


class Pace:
    """Decides when the next step is due.

    All methods are called in the engine's thread, between two steps.
    """

    def __init__(self) -> None:
        self.state = PaceState()
        self._steps_left = 0
        self._last_step = float("-inf")

    def change(self, state: PaceState) -> None:
        """Replace the state, and allow no single steps."""
        self.state = state
        self._steps_left = 0

    def allow_steps(self, count: int) -> None:
        """Pause after ``count`` more steps."""
        self.state = PaceState(paused=True, interval=self.state.interval)
        self._steps_left = count

    def seconds_to_wait(self) -> float | None:
        """Return the number of seconds until the next step is due; None if no step is allowed."""
        if self.state.paused:
            return 0 if self._steps_left else None
        if self.state.until:
            return 0  # a search at the pace of a demonstration would take minutes
        return max(0.0, self._last_step + self.state.interval - time.monotonic())

    def step_begins(self) -> None:
        """Note that the next step starts now."""
        self._last_step = time.monotonic()
        self._steps_left = max(0, self._steps_left - 1)

    def sees(self, record: StepRecord) -> bool:
        """Pause if the awaited event happened in this step, and return whether it did."""
        happened = {"preemption": record.preempted, "eviction": record.evicted_blocks}
        if self.state.until is None or not happened[self.state.until]:
            return False
        self.change(PaceState(paused=True, interval=self.state.interval))
        return True
