"""Exercise experts: route tokens to experts, and compute each expert once.

The idea. Instead of one large MLP, a layer has many small ones, the *experts*, and a *router* that
chooses a few of them for each token. The router gives a token one logit per expert. The token's
result is the sum of its experts' results, each multiplied by a weight::

    logits of a token     2.0   0.1   1.0  -3.0       E = 4 experts
    softmax               0.66  0.10  0.24  0.004
    the 2 largest         0.66        0.24            experts 0 and 2
    scaled to sum to 1    0.73        0.27            the weights, if ``normalized``

    result = 0.73 * expert 0 (x) + 0.27 * expert 2 (x)

A loop over tokens would read each token's experts again. Sorted by expert, each expert's weights
are read once, and multiplied with all of its tokens in one product::

    token     0  0  1  1  2  2          expert    0  0     1     2  2     3
    expert    2  0  1  2  3  0    ──►   token     0  2     1     0  1     2

What to write: ``choose_experts`` and ``mix_experts``. ``expert(index, x)`` is one expert.

How it is checked: random logits, some of which are the same for all tokens, compared with a loop
over tokens. Each expert may be called once, with all of its tokens, and not without any.

    minimal-vllm learn check experts
"""

from collections.abc import Callable

import torch
from torch import Tensor

Expert = Callable[[int, Tensor], Tensor]
"""Computes an expert: its index and ``[n, hidden]`` in, ``[n, hidden]`` out."""


def choose_experts(logits: Tensor, per_token: int, normalized: bool) -> tuple[Tensor, Tensor]:
    """Choose each token's experts.

    Args:
        logits: ``[T, E]``, in float32 or 16 bits. Compute with float32.
        per_token: number of experts to choose.
        normalized: whether the weights of a token are scaled to sum to 1.

    Returns:
        ``[T, per_token]`` int64, indices of the experts, best first; and their weights, ``[T,
        per_token]`` float32.
    """
    raise NotImplementedError


def mix_experts(x: Tensor, experts: Tensor, weights: Tensor, expert: Expert) -> Tensor:
    """Return the weighted sum of each token's experts.

    Args:
        x: ``[T, hidden]``.
        experts: ``[T, k]`` int64: indices of each token's experts.
        weights: ``[T, k]`` float32: factors of their results.
        expert: computes an expert; to be called once for each expert that has a token.

    Returns:
        ``[T, hidden]``, of the dtype of ``x``.
    """
    raise NotImplementedError
