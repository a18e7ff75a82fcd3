"""Arrival times of requests, drawn at random."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice

import numpy as np

DRAWN_AT_ONCE = 4096
"""Number of gaps drawn per call to NumPy."""


def arrival_times(
    rate: float, burstiness: float, seed: int | Sequence[int], *, stretched_to: int | None = None
) -> Iterable[float]:
    """Return the arrival times of requests in seconds, in ascending order.

    Gaps between arrivals follow a gamma distribution with mean ``1 / rate``, as in vLLM's
    benchmark. They are drawn for a rate of 1 and then scaled, so two rates see the same pattern at
    different speeds.

    Args:
        rate: requests per second. If infinite, all requests arrive at time 0.
        burstiness: shape of the gamma distribution. 1 is a Poisson process; a smaller value
            gives bursts; a larger one gives more regular arrivals.
        seed: seed of the random numbers.
        stretched_to: number of times to return, stretched as vLLM does it: the last one is
            ``stretched_to / rate``, so that two seeds offer the same load. Default: an endless
            sequence, not stretched.
    """
    times = accumulate(gap / rate for gap in _gaps(burstiness, seed))
    if stretched_to is None:
        return times
    drawn = list(islice(times, stretched_to))
    last = drawn[-1] or 1.0  # an infinite rate, or gaps too small for floating-point numbers
    return [time * (stretched_to / rate / last) for time in drawn]


def _gaps(burstiness: float, seed: int | Sequence[int]) -> Iterator[float]:
    """Yield endless gaps with mean 1."""
    random = np.random.default_rng(seed)
    while True:
        yield from random.gamma(burstiness, 1 / burstiness, DRAWN_AT_ONCE).tolist()
