"""The online softmax, in PyTorch: attention over keys that arrive round by round.

Sources: Milakov and Gimelshein, 2018, https://arxiv.org/abs/1805.02867; Dao et al.,
*FlashAttention*, 2022, https://arxiv.org/abs/2205.14135, section 3.1.
"""

import torch
from torch import Tensor

NEVER = -1e30
"""Initial value of a running maximum: ``NEVER - NEVER`` is 0, where ``-inf + inf`` is NaN."""


class OnlineSoftmax:
    """Running softmax, which adds up ``sum(exp(score) * value) / sum(exp(score))`` round by round.

    For each row of each tile it keeps the greatest score so far, and both sums relative to that
    score. A greater score rescales the sums.

    Args:
        queries: ``[tiles, K, rows, D]`` float32, for their shape.
        sinks: ``[tiles, K, rows, 1]`` float32: scores that have a weight but no value; overwritten.
            None: there are none.
    """

    def __init__(self, queries: Tensor, sinks: Tensor | None = None) -> None:
        if sinks is None:
            self._top = torch.full_like(queries[..., :1], NEVER)
            self._weight = torch.zeros_like(self._top)
        else:
            self._top = sinks
            self._weight = torch.ones_like(sinks)
        self._sum = torch.zeros_like(queries)

    def add(self, chosen: slice, scores: Tensor, values: Tensor) -> None:
        """Add the keys of a round.

        Args:
            chosen: slice of the round's ``n`` tiles.
            scores: ``[n, K, rows, keys]``; -inf where a row doesn't attend to a key. Overwritten.
            values: ``[n, K, keys, D]``.
        """
        top = self._top[chosen]
        weight = self._weight[chosen]
        total = self._sum[chosen]
        new_top = torch.maximum(top, scores.amax(-1, keepdim=True))
        rescale = torch.exp(top - new_top)
        exponentials = scores.sub_(new_top).exp_()
        top.copy_(new_top)
        weight.mul_(rescale).add_(exponentials.sum(-1, keepdim=True))
        total.mul_(rescale).add_(exponentials @ values)

    def result(self) -> Tensor:
        """Return the merged attention, ``[tiles, K, rows, D]``.

        Every row has seen at least one key, its own token's.
        """
        return self._sum / self._weight
