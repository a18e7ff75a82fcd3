"""Groups of layers, so that layers with a sliding window hold only the blocks that it sees.

A block of the pool has room for ``block_size`` tokens in the layers of *one* group. The number of
layers is the same for all groups, so any group can use any block. A request needs one block per
group for the same tokens, and releases those that a group's window has left behind::

    tokens         0-3  4-7  8-11 12-15 16-19
    full              7    1    4     9     2       all layers without a window
    window of 8       ·    ·    ·     5     8       · released: no later token sees these
    window of 8       ·    ·    ·     3     6       a second group, since there are twice as many

A model without windows has a single group, and everything is as if there were none.

Source: the hybrid KV cache manager of vLLM, https://docs.vllm.ai/en/latest/design/hybrid_kv_cache_manager/.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Window = int | None
"""Number of tokens that a token attends to, itself included. None: all tokens up to itself."""

NO_BLOCK = -1
"""Entry of a block table whose block the group's window has passed."""

T = TypeVar("T")

MAX_GROUPS = 8
"""Number of groups up to which layers are divided. Each group costs the CPU a block table."""


@dataclass(frozen=True, slots=True)
class LayerGroups:
    """The groups that the layers of a model are divided into."""

    windows: tuple[Window, ...]
    """Window of each group. Groups without a window come first."""
    size: int
    """Number of layers that a block has room for; some groups may have fewer."""
    of_layer: tuple[int, ...]
    """Group of each layer."""
    places: tuple[int, ...]
    """Place of each layer in its group, from 0 to ``size - 1``."""

    @property
    def number(self) -> int:
        """Number of groups."""
        return len(self.windows)

    def by_layer(self, by_group: Sequence[T]) -> list[T]:
        """Return the element of each layer's group."""
        return [by_group[group] for group in self.of_layer]


def group_layers(windows: Sequence[Window], max_model_len: int) -> LayerGroups:
    """Divide layers into groups, so that the layers of a group have the same window.

    Args:
        windows: window of each layer.
        max_model_len: maximum length of a request. A window at least as long never leaves a token
            behind, and counts as none.
    """
    kinds = [None if window and window >= max_model_len else window for window in windows]
    counts = dict(sorted(Counter(kinds).items(), key=lambda kind: kind[0] or 0))
    size = _choose_size(counts)
    group_windows: list[Window] = []
    first_group: dict[Window, int] = {}
    for window, count in counts.items():
        first_group[window] = len(group_windows)
        group_windows += [window] * -(-count // size)
    of_layer, places, seen = [], [], Counter[Window]()
    for window in kinds:
        of_layer.append(first_group[window] + seen[window] // size)
        places.append(seen[window] % size)
        seen[window] += 1
    return LayerGroups(tuple(group_windows), size, tuple(of_layer), tuple(places))


def _choose_size(counts: dict[Window, int]) -> int:
    """Return the number of layers in a group, given the number of layers with each window.

    A block is as large as a full group, so groups with fewer layers waste memory: above all those
    without a window, whose blocks a long text holds all the time.
    """

    def cost(size: int) -> tuple[bool, int, int, int]:
        groups = {window: -(-count // size) for window, count in counts.items()}
        num_groups = sum(groups.values())
        padded = {window: size * number for window, number in groups.items()}
        return num_groups > MAX_GROUPS, padded.get(None, 0), sum(padded.values()), num_groups

    return min(range(1, max(counts.values()) + 1), key=cost)


def first_seen_block(position: int, window: Window, block_size: int) -> int:
    """Return the index of the first block that the tokens of a block, and later ones, attend to.

    Args:
        position: position of any token of the block.
        window: window of the layers.
        block_size: tokens per block.
    """
    if window is None:
        return 0
    return max(0, position // block_size - num_blocks_behind(window, block_size))


def num_blocks_behind(window: int, block_size: int) -> int:
    """Return the number of blocks that the first token of a block sees before that block."""
    return -(-(window - 1) // block_size)
