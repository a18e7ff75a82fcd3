"""Which decoding requests begin with the same blocks, so that these can be read once for all.

Source: Juravsky et al., *Hydragen*, 2024, https://arxiv.org/abs/2402.05099; Ye et al., *Cascade
Inference*, 2024. Here the block tables say who shares what, so that nobody has to declare it.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minimal_vllm.step.request import Request

LEAST_SAVING = 0.125
"""The share of all tokens that sharing must spare the step from reading, to be worth a kernel."""
LEAST_TOKENS = 8192
"""And so many it must be: to share costs a layer 10 µs, in which these can be read."""


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Some requests, and how many tokens at their beginning lie in the same blocks."""

    members: list[int]
    """Places in the batch; at least two."""
    num_tokens: int
    """A multiple of the block size; each member has at least one token behind it."""


def find_shared_prefixes(requests: Sequence[Request], block_size: int) -> list[SharedPrefix]:
    """The groups that share a beginning, those that save most first; none if it would not pay."""
    found = group_by_beginning(requests, block_size)
    total = sum(request.num_computed_tokens for request in requests)
    if sum(map(_saving, found)) < max(LEAST_TOKENS, LEAST_SAVING * total):
        return []
    return sorted((prefix for prefix in found if prefix.num_tokens), key=_saving, reverse=True)


def group_by_beginning(requests: Sequence[Request], block_size: int) -> list[SharedPrefix]:
    """Group requests by their first block; a group shares what all its members begin with."""
    groups = defaultdict(list)
    for place, request in enumerate(requests):
        groups[request.block_table[0]].append(place)
    return [
        _shared_by(members, [requests[place] for place in members], block_size)
        for members in groups.values()
        if len(members) > 1
    ]


def _saving(prefix: SharedPrefix) -> int:
    return (len(prefix.members) - 1) * prefix.num_tokens


def _shared_by(places: list[int], requests: Sequence[Request], block_size: int) -> SharedPrefix:
    # The last token is its request's own, and is never left to what is shared.
    most = min((request.num_computed_tokens - 1) // block_size for request in requests)
    tables = np.array([request.block_table[:most] for request in requests])
    differs = (tables != tables[0]).any(axis=0)
    num_blocks = int(differs.argmax()) if differs.any() else most
    return SharedPrefix(places, num_blocks * block_size)
