"""Exercise sampler: from logits to a token.

The idea. The model gives each token of the vocabulary a number, its *logit*; ``exp(logit)``,
divided by the sum over all, is its probability. Before one is drawn, the improbable ones may be
left out: there are so many of them that one would come up in every other sentence::

    probabilities   the 0.5   a 0.3   sea 0.15   dark 0.04   xylophone 0.01
    top_k = 3       ×         ×       ×                                     the 3 most probable
    top_p = 0.9     ×         ×       ×                                     the fewest with 0.9
    min_p = 0.2     ×         ×       ×                                     at least 0.2 * 0.5

    drawing:  |      the      |    a    | sea |      a random number u in [0, 1) falls into one
              0              0.53      0.84   1

The functions get ``shifted`` logits ``[N, V]``: divided by the temperature, and less the greatest
of their row, which is 0 therefore. So ``exp(shifted)`` is a probability relative to the highest. To
leave a token out, set its logit to -inf, in place. ``rows[i].params`` has the row's ``min_p`` (0:
off), ``top_k`` (0 or less: off) and ``top_p`` (1: off); other rows must not be touched. What is
left out already, at -inf, stays so.

What to write: ``keep_min_p``, ``keep_top_k``, ``keep_top_p`` and ``draw``. A loop over the rows is
fine.

How it is checked: with random logits, many of which are equal, against the engine's functions.

    minimal-vllm learn check sampler
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minimal_vllm.sampling.row import SamplingRow


def keep_min_p(shifted: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Drops tokens less probable than ``min_p`` times the most probable one; in place."""
    raise NotImplementedError("a relative probability of min_p is a shifted logit of log(min_p)")


def keep_top_k(shifted: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Keeps the ``top_k`` most probable tokens; in place.

    Of equally probable tokens at the edge the first in the vocabulary stay.
    """
    raise NotImplementedError("sort stably, in descending order; leave out all behind top_k")


def keep_top_p(shifted: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Keeps the fewest most probable tokens whose probabilities sum to ``top_p``; in place.

    Always keeps one. Of equally probable tokens at the edge the first in the vocabulary stay.
    """
    raise NotImplementedError(
        "in descending order, a token stays if those before it have less than top_p of the sum of "
        "all together; add in float64"
    )


def draw(shifted: Tensor, uniforms: NDArray[np.float64]) -> Tensor:
    """Draws a token per row by inverting the cumulative distribution in vocabulary order.

    Args:
        shifted: float32 ``[N, V]`` logits, of which the greatest in each row is 0.
        uniforms: ``[N]`` numbers in [0, 1).

    Returns:
        int64 ``[N]``: the first token for which the probabilities up to and including it sum to
        more than the row's number.
    """
    raise NotImplementedError("exp, cumsum, and torch.searchsorted for the number times the sum")
