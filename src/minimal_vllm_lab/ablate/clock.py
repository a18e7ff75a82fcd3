"""By which clock requests come, and are timed."""

import time
from typing import Protocol


class Clock(Protocol):
    """Tells seconds, and lets them pass."""

    def now(self) -> float:
        """Seconds since some moment."""
        ...

    def wait(self, seconds: float) -> None:
        """Let time pass in which there is nothing to do."""
        ...


class WallClock:
    """The usual one."""

    def now(self) -> float:
        """Seconds of real time."""
        return time.perf_counter()

    def wait(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(max(0.0, seconds))


class CpuClock:
    """This process's own time on the CPU, which stands still while others are served.

    On a machine with other work it tells what the wall clock would tell without, if PyTorch has
    one thread. Waiting is skipped.
    """

    def __init__(self) -> None:
        self._skipped = 0.0

    def now(self) -> float:
        """Seconds of CPU time, and those that were skipped."""
        return time.process_time() + self._skipped

    def wait(self, seconds: float) -> None:
        """Put the clock forward."""
        self._skipped += max(0.0, seconds)
