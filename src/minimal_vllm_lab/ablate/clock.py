"""Clocks that determine when requests arrive and how long they take."""

import time
from typing import Protocol


class Clock(Protocol):
    """Clock that can tell the time and let time pass."""

    def now(self) -> float:
        """Return seconds since an arbitrary moment."""
        ...

    def wait(self, seconds: float) -> None:
        """Let time pass in which there is nothing to do."""
        ...


class WallClock:
    """Clock of real time."""

    def now(self) -> float:
        """Return seconds of real time."""
        return time.perf_counter()

    def wait(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(max(0.0, seconds))


class CpuClock:
    """Clock of this process's CPU time, which stands still while other processes run.

    On a busy machine it shows the time that an idle machine would need, provided that PyTorch uses
    one thread. Waiting is skipped.
    """

    def __init__(self) -> None:
        self._skipped = 0.0

    def now(self) -> float:
        """Return seconds of CPU time plus the skipped waiting time."""
        return time.process_time() + self._skipped

    def wait(self, seconds: float) -> None:
        """Advance the clock without waiting."""
        self._skipped += max(0.0, seconds)
