"""How fast the engine steps: at once, at intervals, or one step at a time."""

import time
from dataclasses import dataclass
from typing import Literal

from minimal_vllm.trace.step_record import StepRecord

Occasion = Literal["preemption", "eviction"]


@dataclass(frozen=True, slots=True)
class PaceState:
    """What was chosen."""

    paused: bool = False
    interval: float = 0.0
    """Seconds from the beginning of one step to that of the next, at least."""
    until: Occasion | None = None
    """Pause after the next step in which this happens."""


class Pace:
    """Belongs to the engine's thread: everything here is called in it, between two steps."""

    def __init__(self) -> None:
        self.state = PaceState()
        self._steps_left = 0
        self._last_step = float("-inf")

    def change(self, state: PaceState) -> None:
        """Go on like this."""
        self.state = state
        self._steps_left = 0

    def allow_steps(self, count: int) -> None:
        """Pause after so many more steps."""
        self.state = PaceState(paused=True, interval=self.state.interval)
        self._steps_left = count

    def seconds_to_wait(self) -> float | None:
        """Until the next step is due; None: it is not allowed."""
        if self.state.paused:
            return 0 if self._steps_left else None
        return max(0.0, self._last_step + self.state.interval - time.monotonic())

    def step_begins(self) -> None:
        """The next step is made now."""
        self._last_step = time.monotonic()
        self._steps_left = max(0, self._steps_left - 1)

    def sees(self, record: StepRecord) -> bool:
        """Pause if what was waited for has happened in this step; whether it has."""
        happened = {"preemption": record.preempted, "eviction": record.evicted_blocks}
        if self.state.until is None or not happened[self.state.until]:
            return False
        self.change(PaceState(paused=True, interval=self.state.interval))
        return True
