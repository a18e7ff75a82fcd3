"""The largest numbers of a row as long as a vocabulary."""

import torch
from torch import Tensor

GROUP = 128
"""Number of neighbors in a group, of which only the largest is looked at first."""


def top_of_rows(numbers: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest numbers of each row, in descending order, and their indices.

    They are those of ``numbers.topk(count)``, found faster. Of equal numbers, the indices may
    differ. The largest numbers are in the groups with the largest peaks, or behind the last group.
    So one pass over all numbers finds each group's peak, and only the numbers of ``count`` groups
    are sorted.

    Args:
        numbers: ``[n, V]``.
        count: number of numbers to return for each row, at most ``V``.

    Returns:
        Numbers, ``[n, count]``, and their indices, ``[n, count]`` int64.
    """
    size = numbers.shape[1]
    if not 0 < 2 * count * GROUP <= size:
        values, index = numbers.topk(count)
        return values, index
    grouped = size - size % GROUP
    peaks = numbers[:, :grouped].view(-1, grouped // GROUP, GROUP).amax(dim=-1)
    all_indices = torch.arange(size, device=numbers.device)
    first = GROUP * peaks.topk(count).indices
    index = (first[:, :, None] + all_indices[:GROUP]).flatten(1)
    index = torch.cat([index, all_indices[grouped:].expand(len(index), -1)], dim=1)
    values, place = numbers.gather(1, index).topk(count)
    return values, index.gather(1, place)
