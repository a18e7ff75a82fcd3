"""Exercise sampler: filter logits and draw a token.

The idea. The model assigns a number to each token of the vocabulary, its *logit*. The probability
of a token is ``exp(logit)``, divided by the sum over all tokens. Before a token is drawn,
improbable ones may be removed: there are so many that one of them would appear in every other
sentence::

    probabilities   the 0.5   a 0.3   sea 0.15   dark 0.04   xylophone 0.01
    top_k = 3       ×         ×       ×                                     the 3 most probable
    top_p = 0.9     ×         ×       ×                                     the fewest with 0.9
    min_p = 0.2     ×         ×       ×                                     at least 0.2 * 0.5

    draw:     |      the      |    a    | sea |      a random number u in [0, 1) falls into one
              0              0.53      0.84   1

The functions take ``shifted`` logits ``[N, V]``: divided by the temperature, and reduced by the
maximum of their row, which is therefore 0. So ``exp(shifted)`` is a probability relative to the
highest one. To remove a token, set its logit to -inf, in place. ``rows[i].params`` has the row's
``min_p`` (off: 0), ``top_k`` (off: 0 or less) and ``top_p`` (off: 1). Do not change rows for which
the filter is off. Tokens that are already at -inf stay removed.

What to write: ``keep_min_p``, ``keep_top_k``, ``keep_top_p`` and ``draw``. A loop over the rows is
fine.

How it is checked: random logits with many ties, compared with the engine's functions.

    minimal-vllm learn check sampler
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minimal_vllm.sampling.row import SamplingRow


def keep_min_p(shifted: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Remove tokens less probable than ``min_p`` times the most probable one, in place."""
    raise NotImplementedError


def keep_top_k(shifted: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Keep only the ``top_k`` most probable tokens, in place.

    Ties at the boundary go to the lowest token ids.
    """
    raise NotImplementedError


def keep_top_p(shifted: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Keep only the fewest most probable tokens whose probabilities sum to ``top_p``, in place.

    Always keeps at least one token. Ties at the boundary go to the lowest token ids.
    """
    raise NotImplementedError


def draw(shifted: Tensor, uniforms: NDArray[np.float64]) -> Tensor:
    """Draw one token per row, by inverting the cumulative distribution in vocabulary order.

    Args:
        shifted: float32 ``[N, V]`` logits. The maximum of each row is 0.
        uniforms: float64 ``[N]`` random numbers in [0, 1).

    Returns:
        int64 ``[N]``, for each row the first token at which the cumulative probability exceeds the
        row's random number.
    """
    raise NotImplementedError
