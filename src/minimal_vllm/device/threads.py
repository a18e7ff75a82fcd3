"""The number of threads that compute an operation on a CPU.

OpenMP's threads sleep between two operations, since spinning makes everything many times slower on
cores that have other work to do. To wake one takes some 50 µs, as long as one thread takes to
multiply a vector by a matrix of a million numbers. Many shorter operations, one after the other,
are therefore faster on one thread than on several.
"""

import os

import torch


def threads_spin() -> bool:
    """Return whether threads spin, because ``OMP_WAIT_POLICY`` says so, and needn't be woken."""
    return os.environ.get("OMP_WAIT_POLICY", "passive").lower() == "active"


class OneThread:
    """Context in which operations are computed by one thread.

    Args:
        alone: whether to compute with one thread. False: nothing changes.
    """

    def __init__(self, alone: bool) -> None:
        self._alone = alone

    def __enter__(self) -> None:
        """Remember the number of threads, and let one compute."""
        self._before = torch.get_num_threads()
        if self._alone:
            torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        """Let as many threads compute as before."""
        if self._alone:
            torch.set_num_threads(self._before)
