"""The one random number that a row needs in a step, as a function without state."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from minimal_vllm.sampling.row import SamplingRow

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
"""2**64 divided by the golden ratio, made odd."""


def uniforms(rows: Sequence[SamplingRow]) -> NDArray[np.float64]:
    """A number in [0, 1) per row: a function of its seed and the place of its token alone.

    This is a counter-based generator: output number ``i`` of SplitMix64, started from the hashed
    seed. There is no state to keep, so a request draws the same numbers alone and in a crowd,
    and again after a preemption.

    Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014,
    figures 16 and 17.
    """
    seeds = np.array([row.seed % 2**64 for row in rows], dtype=np.uint64)
    counts = np.array([row.next_output_index for row in rows], dtype=np.uint64)
    bits = _mix(_mix(seeds) + (counts + np.uint64(1)) * GOLDEN_GAMMA)
    # A double holds 53 bits.
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's ``mix64``: each bit of the input flips each of the output in half the cases."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
