"""When requests come."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice

import numpy as np

DRAWN_AT_ONCE = 4096


def arrival_times(
    rate: float, burstiness: float, seed: int | Sequence[int], *, stretched_to: int | None = None
) -> Iterable[float]:
    """Times in seconds, never falling.

    The gaps are gamma distributed with the mean ``1 / rate``, as ``vllm bench serve`` has them.
    They are drawn for a rate of 1 and scaled, so that two rates see the same pattern, faster or
    slower.

    Args:
        rate: requests per second; infinite: all come at once.
        burstiness: the distribution's shape. 1: a Poisson process; less: bursts; more: regular.
        seed: of the random numbers.
        stretched_to: so many times, stretched as vLLM's are: the last is ``stretched_to / rate``,
            so that two seeds offer the same load. None: an endless sequence, as it was drawn.
    """
    times = accumulate(gap / rate for gap in _gaps(burstiness, seed))
    if stretched_to is None:
        return times
    drawn = list(islice(times, stretched_to))
    last = drawn[-1] or 1.0  # an infinite rate, or gaps too small for floating-point numbers
    return [time * (stretched_to / rate / last) for time in drawn]


def _gaps(burstiness: float, seed: int | Sequence[int]) -> Iterator[float]:
    """Endless, with the mean 1."""
    random = np.random.default_rng(seed)
    while True:
        yield from random.gamma(burstiness, 1 / burstiness, DRAWN_AT_ONCE).tolist()
