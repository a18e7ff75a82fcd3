"""Finding decoding requests that begin with the same blocks, so that attention reads these once.

Source: Juravsky et al., *Hydragen*, 2024, https://arxiv.org/abs/2402.05099; Ye et al., *Cascade
Inference*, 2024. Sharing is detected from the block tables; the user does not have to declare it.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minimal_vllm.cache.layer_groups import Window
from minimal_vllm.step.request import Request

MIN_SAVING = 0.125
"""Smallest fraction of a step's cached tokens that sharing must save from being read."""
MIN_TOKENS = 8192
"""Smallest number of cached tokens that sharing must save. The extra kernel takes 10 µs per layer,
and this many tokens are read in that time."""


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """A group of requests whose first ``num_tokens`` tokens lie in the same blocks."""

    members: list[int]
    """Indices in the batch; at least two."""
    num_tokens: int
    """Length of the shared prefix, a multiple of the block size. Each member has at least one more
    computed token."""


def find_shared_prefixes(
    requests: Sequence[Request], block_size: int, windows: Sequence[Window] = (None,)
) -> list[SharedPrefix]:
    """Return the groups that share a prefix, the largest saving first.

    The list is empty if the extra kernel would cost more time than the sharing saves. Only layers
    without a window can use it; ``windows`` has the window of each group of layers.
    """
    found = group_by_beginning(requests, block_size, windows)
    total = sum(request.num_computed_tokens for request in requests)
    if sum(map(_saving, found)) < max(MIN_TOKENS, MIN_SAVING * total):
        return []
    return sorted((prefix for prefix in found if prefix.num_tokens), key=_saving, reverse=True)


def group_by_beginning(
    requests: Sequence[Request], block_size: int, windows: Sequence[Window] = (None,)
) -> list[SharedPrefix]:
    """Group requests by their first block, and find the longest prefix that each group shares."""
    if None not in windows:
        return []
    groups = defaultdict(list)
    for index, request in enumerate(requests):
        groups[request.block_table[0]].append(index)
    return [
        _shared_by(members, [requests[index] for index in members], block_size, windows)
        for members in groups.values()
        if len(members) > 1
    ]


def _saving(prefix: SharedPrefix) -> int:
    return (len(prefix.members) - 1) * prefix.num_tokens


def _shared_by(
    members: list[int], requests: Sequence[Request], block_size: int, windows: Sequence[Window]
) -> SharedPrefix:
    # A request's last token is never part of the shared prefix.
    most = min((request.num_computed_tokens - 1) // block_size for request in requests)
    tables = np.array([request.block_table[: most * len(windows)] for request in requests])
    without_window = tables.reshape(len(requests), most, -1)[:, :, : windows.count(None)]
    differs = (without_window != without_window[0]).any(axis=(0, 2))
    num_blocks = int(differs.argmax()) if differs.any() else most
    return SharedPrefix(members, num_blocks * block_size)
