"""Drawing a token from a distribution, exactly and reproducibly."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minimal_vllm.sampling.row import SamplingRow

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
"""SplitMix64's increment: 2**64 divided by the golden ratio, made odd."""
MIX_1, MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""SplitMix64's multipliers."""
UNIFORM_STEP = 2.0**-53
"""Distance between the random numbers in [0, 1), which have the 53 bits of a double."""
PEAK_WEIGHT = 2.0**40
"""Integer weight of the most probable token. A sum over 2**23 tokens still fits into 63 bits."""
BLOCK = 512
"""Number of tokens that are summed together. The result doesn't depend on it."""


def uniforms(rows: Sequence[SamplingRow]) -> NDArray[np.float64]:
    """Return a random number in [0, 1) per row, which depends only on its seed and token index.

    This is a counter-based generator: output number ``i`` of SplitMix64, started from the hashed
    seed. It keeps no state, so a request draws the same numbers alone, in a batch, and again after
    a preemption.

    Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014,
    figures 16 and 17.
    """
    seeds = np.array([row.seed % 2**64 for row in rows], dtype=np.uint64)
    counts = np.array([row.next_output_index for row in rows], dtype=np.uint64)
    bits = _mix(_mix(seeds) + (counts + np.uint64(1)) * np.uint64(GOLDEN_GAMMA))
    return (bits >> np.uint64(11)).astype(np.float64) * UNIFORM_STEP


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash as SplitMix64's ``mix64``: each input bit flips each output bit in half the cases."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(MIX_2)
    return z ^ (z >> np.uint64(31))


def integer_weights(shifted: Tensor) -> Tensor:
    """Return probabilities as int64, in units in which the most probable token has 2**40.

    A sum of integers does not depend on the order of addition, unlike one of floating-point
    numbers. So cumulative sums never decrease, a token of probability zero adds nothing to them,
    and every batch shape and device makes the same decision.

    Args:
        shifted: ``[..., V]`` float32 logits; the greatest in each row is 0.
    """
    return shifted.exp().mul_(PEAK_WEIGHT).long()


def draw(shifted: Tensor, uniforms: NDArray[np.float64]) -> Tensor:
    """Draw a token per row by inverting the cumulative distribution in vocabulary order.

    The token is the first for which the weights up to and including it exceed ``uniform * total``.
    The search has two steps, first for the block of tokens and then inside it, because a cumulative
    sum is much slower than a sum. Source: Devroye, *Non-Uniform Random Variate Generation*, 1986,
    section III.2.

    Args:
        shifted: ``[N, V]`` float32 logits; the greatest in each row is 0. A row that holds NaN gets
            an arbitrary token; the other rows are unaffected.
        uniforms: ``[N]`` numbers in [0, 1).

    Returns:
        ``[N]`` int64 token ids.
    """
    rows, vocab_size = shifted.shape
    padded = shifted.new_zeros((rows, -(-vocab_size // BLOCK) * BLOCK), dtype=torch.int64)
    padded[:, :vocab_size] = integer_weights(shifted)
    blocks = padded.view(rows, -1, BLOCK)
    block_weights = blocks.sum(dim=-1)
    cumulative = block_weights.cumsum(dim=-1)

    # Even the greatest double below 1, 1 - 2**-53, times the total rounds to less than the total.
    target = torch.from_numpy(uniforms).to(shifted.device)[:, None] * cumulative[:, -1:]
    target = target.long()

    block = torch.searchsorted(cumulative, target, right=True).clamp_(max=blocks.shape[1] - 1)
    target = target - (cumulative - block_weights).gather(1, block)
    inside = blocks[torch.arange(rows, device=shifted.device), block[:, 0]].cumsum(dim=-1)
    offset = torch.searchsorted(inside, target, right=True).clamp_(max=BLOCK - 1)
    token_ids: Tensor = block * BLOCK + offset
    return token_ids[:, 0]
