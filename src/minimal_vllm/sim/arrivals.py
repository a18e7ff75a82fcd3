"""When requests come."""

from collections.abc import Iterator
from itertools import repeat

import numpy as np

DRAWN_AT_ONCE = 4096


def arrival_times(rate: float | None, burstiness: float, seed: int) -> Iterator[float]:
    """An endless sequence of times, in seconds.

    The gaps are gamma distributed with the mean ``1 / rate``, as ``vllm bench serve`` has them.
    They are drawn for a rate of 1 and scaled, so that two rates see the same pattern, faster or
    slower.

    Args:
        rate: requests per second; None: all come at once.
        burstiness: the distribution's shape. 1: a Poisson process; less: bursts; more: regular.
        seed: of the random numbers.
    """
    if rate is None:
        yield from repeat(0.0)
        return
    random = np.random.default_rng(seed)
    now = 0.0
    while True:
        for gap in random.gamma(burstiness, 1 / burstiness, DRAWN_AT_ONCE).tolist():
            now += gap / rate
            yield now
