"""min_p, top_k and top_p: excluding the less probable tokens before one is drawn.

Each filter sets logits to -inf in place, and touches only the rows that ask for it. The logits have
been divided by the temperature and shifted so that the greatest in each row is 0.
"""

from collections.abc import Sequence
from math import inf, log

import torch
from torch import Tensor

from minimal_vllm.sampling.draw import integer_weights
from minimal_vllm.sampling.row import SamplingRow
from minimal_vllm.sampling.top import top_of_rows

NUCLEUS_GUESS = 1024
"""Number of most probable tokens that ``top_p`` looks at first. They mostly hold enough of the
probability, and finding them is much faster than sorting a large vocabulary. The result does not
depend on it."""


def keep_min_p(shifted: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Exclude tokens less probable than ``min_p`` times the most probable one; in place.

    Source: Nguyen et al., 2024, https://arxiv.org/abs/2407.01082.
    """
    index = [i for i, row in enumerate(rows) if row.params.min_p > 0]
    if index:
        floor = shifted.new_tensor([log(rows[i].params.min_p) for i in index])[:, None]
        logits = shifted[index]
        shifted[index] = logits.masked_fill_(logits < floor, -inf)


def keep_top_k(shifted: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Keep the ``top_k`` most probable tokens; in place.

    Of equally probable tokens at the edge the first in the vocabulary stay. Source: Fan et al.,
    2018, https://arxiv.org/abs/1805.04833.
    """
    index = [i for i, row in enumerate(rows) if 0 < row.params.top_k < shifted.shape[1]]
    if index:
        top_k = torch.tensor([rows[i].params.top_k for i in index], device=shifted.device)[:, None]
        ranked, _ = top_of_rows(shifted[index], max(rows[i].params.top_k for i in index))
        _keep_first(shifted, index, ranked, top_k)


def keep_top_p(shifted: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Keep the fewest most probable tokens whose probabilities sum to ``top_p``; in place.

    At least one token is kept. Of equally probable tokens at the edge the first in the vocabulary
    stay. Source: Holtzman et al., 2020, https://arxiv.org/abs/1904.09751.
    """
    index = [i for i, row in enumerate(rows) if row.params.top_p < 1]
    if not index:
        return
    logits = shifted[index]
    share = torch.tensor([rows[i].params.top_p for i in index], dtype=torch.float64)
    share = share.to(shifted.device)[:, None] * integer_weights(logits).sum(dim=-1, keepdim=True)

    width = max(rows[i].params.top_k if rows[i].params.top_k > 0 else NUCLEUS_GUESS for i in index)
    ranked, _ = top_of_rows(logits, min(width, shifted.shape[1]))
    guessed = (integer_weights(ranked).sum(dim=-1, keepdim=True) >= share)[:, 0].tolist()
    for enough in (True, False):
        part = [i for i, is_enough in enumerate(guessed) if is_enough is enough]
        if part:
            values = ranked[part] if enough else logits[part].sort(descending=True).values
            weights = integer_weights(values)
            before = weights.cumsum(dim=-1) - weights
            count = (before < share[part]).sum(dim=-1, keepdim=True)
            _keep_first(shifted, [index[i] for i in part], values, count)


def _keep_first(shifted: Tensor, index: list[int], ranked: Tensor, count: Tensor) -> None:
    """Keep the ``count`` ``[n, 1]`` greatest logits of the rows ``index``; in place.

    ``ranked`` ``[n, W]`` holds the greatest logits of these rows in descending order. Ties are
    broken here, because neither ``topk`` nor ``sort`` guarantees which equal token comes first.
    """
    last = ranked.gather(1, count.clamp(min=1) - 1)
    logits = shifted[index]
    above = logits > last
    tied = logits == last
    room = count - above.sum(dim=-1, keepdim=True)
    keep = above | (tied & (tied.cumsum(dim=-1, dtype=torch.int32) <= room))
    shifted[index] = logits.masked_fill_(~keep, -inf)
