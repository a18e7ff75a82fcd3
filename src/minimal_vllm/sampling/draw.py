"""Drawing a token from a distribution, exactly."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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


ONE = 2.0**40
"""The weight of the most probable token. A sum over 2**23 tokens still fits 63 bits."""

BLOCK = 512
"""How many tokens are summed at once; any number gives the same result."""


def integer_weights(shifted: Tensor) -> Tensor:
    """Probabilities as int64, in units in which the most probable token has 2**40.

    The sum of integers does not depend on the order in which a processor adds them, as that of
    floating-point numbers does. So cumulative sums never decrease, a token of probability zero
    has no share in them, and every batch shape and device comes to the same decision.

    Args:
        shifted: float32 ``[..., V]`` logits, of which the greatest in each row is 0.
    """
    return shifted.exp().mul_(ONE).long()


def draw(shifted: Tensor, uniforms: NDArray[np.float64]) -> Tensor:
    """Draws a token per row by inverting the cumulative distribution in vocabulary order.

    The token is the first for which the weights up to and including it exceed ``uniform * total``.
    The search goes in two steps, first for the block of tokens and then inside it, because a
    cumulative sum is a much slower operation than a sum. Source: Devroye, *Non-Uniform Random
    Variate Generation*, 1986, section III.2.

    Args:
        shifted: float32 ``[N, V]`` logits, of which the greatest in each row is 0. A row that
            holds NaN gets some token; the other rows are unharmed.
        uniforms: ``[N]`` numbers in [0, 1).

    Returns:
        int64 ``[N]``.
    """
    rows, vocab_size = shifted.shape
    padded = shifted.new_zeros((rows, -(-vocab_size // BLOCK) * BLOCK), dtype=torch.int64)
    padded[:, :vocab_size] = integer_weights(shifted)
    blocks = padded.view(rows, -1, BLOCK)
    block_weights = blocks.sum(dim=-1)
    cumulative = block_weights.cumsum(dim=-1)

    # The greatest double under 1, 1 - 2**-53, times the total still rounds to less than the total.
    target = torch.from_numpy(uniforms).to(shifted.device)[:, None] * cumulative[:, -1:]
    target = target.long()

    block = torch.searchsorted(cumulative, target, right=True).clamp_(max=blocks.shape[1] - 1)
    target = target - (cumulative - block_weights).gather(1, block)
    inside = blocks[torch.arange(rows, device=shifted.device), block[:, 0]].cumsum(dim=-1)
    offset = torch.searchsorted(inside, target, right=True).clamp_(max=BLOCK - 1)
    token_ids: Tensor = block * BLOCK + offset
    return token_ids[:, 0]
