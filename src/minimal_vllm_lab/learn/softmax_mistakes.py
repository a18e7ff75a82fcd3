"""Well-known mistakes in the running softmax of a decode kernel, each as a function that makes it.

Each mistake is a function that updates the running softmax of all query heads by one tile of keys,
as ``take_keys`` does, in PyTorch.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from minimal_vllm.attention.reference import attend
from minimal_vllm_lab.check.attention_mistakes import Attend

TILE = 32
"""Keys per tile in the exercise."""
LOG2_E = math.log2(math.e)


class State(NamedTuple):
    """Running softmax of all query heads."""

    peak: Tensor
    """``[H]``."""
    total: Tensor
    """``[H]``."""
    acc: Tensor
    """``[H, D]``."""


Update = Callable[[State, Tensor, Tensor], State]
"""Adds scores ``[H, keys]`` to the base 2, and values ``[H, keys, D]``, to a state."""


def walk(
    update: Update, q: Tensor, keys: Tensor, values: Tensor, scale: float, _window: int | None
) -> Tensor:
    """Attend tile by tile, for one new token.

    Args:
        update: adds a tile.
        q: ``[1, H, D]``.
        keys: ``[m, K, D]``.
        values: ``[m, K, D]``.
        scale: factor for the scores.

    Returns:
        ``[1, H, D]``.
    """
    group = q.shape[1] // keys.shape[1]
    keys, values = (each.repeat_interleave(group, 1).transpose(0, 1) for each in (keys, values))
    scores = torch.einsum("hd,hmd->hm", q[0], keys) * scale * LOG2_E
    heads, dims = q.shape[1:]
    state = State(torch.full((heads,), -torch.inf), torch.zeros(heads), torch.zeros(heads, dims))
    for tile in range(0, len(keys[0]), TILE):
        state = update(state, scores[:, tile : tile + TILE], values[:, tile : tile + TILE])
    return (state.acc / state.total[:, None])[None]


def add_tile(
    state: State,
    scores: Tensor,
    values: Tensor,
    *,
    fades_total: bool = True,
    fades_acc: bool = True,
    fade_sign: int = 1,
    own_peak: bool = False,
    base: float = 2.0,
    weighs: bool = True,
) -> State:
    """Add a tile to a running softmax, with the mistakes that are asked for.

    Args:
        state: the softmax of the earlier tiles.
        scores: ``[H, keys]``, to the base 2.
        values: ``[H, keys, D]``.
        fades_total: whether the earlier total is scaled down.
        fades_acc: whether the earlier weighted values are scaled down.
        fade_sign: -1 to scale in the wrong direction.
        own_peak: whether the weights are relative to the tile's own peak.
        base: base of the exponentials.
        weighs: whether values are multiplied by their weights.
    """
    top = scores.amax(1)
    peak = torch.maximum(state.peak, top)
    weights = base ** (scores - (top if own_peak else peak)[:, None])
    fade = base ** (fade_sign * (state.peak - peak))
    fade = torch.where(state.peak == -torch.inf, 0.0, fade)
    total = state.total * (fade if fades_total else 1) + weights.sum(1)
    used = weights if weighs else torch.ones_like(weights)
    acc = state.acc * (fade[:, None] if fades_acc else 1) + torch.einsum("hk,hkd->hd", used, values)
    return State(peak, total, acc)


def _last_tile(_: State, scores: Tensor, values: Tensor) -> State:
    empty = State(torch.full_like(scores[:, 0], -torch.inf), scores[:, 0] * 0, values[:, 0] * 0)
    return add_tile(empty, scores, values)


def _padded(state: State, scores: Tensor, values: Tensor) -> State:
    missing = TILE - scores.shape[1]
    padded = torch.nn.functional.pad(scores, (0, missing))
    return add_tile(state, padded, torch.nn.functional.pad(values, (0, 0, 0, missing)))


def _replaces_acc(state: State, scores: Tensor, values: Tensor) -> State:
    return add_tile(state._replace(acc=state.acc * 0), scores, values)


def _swaps(state: State, scores: Tensor, values: Tensor) -> State:
    peak, total, acc = add_tile(state, scores, values)
    return State(total, peak, acc)


def _divides(state: State, scores: Tensor, values: Tensor) -> State:
    peak, total, acc = add_tile(state, scores, values)
    return State(peak, total, acc / total[:, None])


SUMS: Mapping[str, Update] = {
    "total is not scaled down when the peak rises": partial(add_tile, fades_total=False),
    "acc is not scaled down when the peak rises": partial(add_tile, fades_acc=False),
    "neither total nor acc is scaled down when the peak rises": partial(
        add_tile, fades_total=False, fades_acc=False
    ),
    "total and acc are scaled by 2 ** (new peak - old peak), the wrong way round": partial(
        add_tile, fade_sign=-1
    ),
    "exp is used instead of exp2": partial(add_tile, base=math.e),
    "the values are added without their weights": partial(add_tile, weighs=False),
}
UPDATES: Mapping[str, Update] = {
    **SUMS,
    "the weights are relative to the tile's own peak instead of the new peak": partial(
        add_tile, own_peak=True
    ),
    "keys that do not exist count with the score 0: hidden scores must be -inf": _padded,
    "acc holds only the last tile's values: those of earlier tiles are not kept": _replaces_acc,
    "only the last tile counts, as if the old sums were dropped or the old peak returned": (
        _last_tile
    ),
    "peak and total are returned in each other's place": _swaps,
    "acc is divided by total in each tile, and once more at the end": _divides,
}


def _values_are_keys(q: Tensor, keys: Tensor, _: Tensor, scale: float, w: int | None) -> Tensor:
    return attend(q, keys, keys, scale, w)


def _weighs_by_lse(state: State, scores: Tensor, values: Tensor) -> State:
    acc = state.acc + scores * values[:, 0]
    return State(state.peak, state.total + scores[:, 0], acc)


def _counts_parts(state: State, scores: Tensor, values: Tensor) -> State:
    return add_tile(state, scores, values)._replace(total=state.total + 1)


def merge(update: Update, outs: Tensor, lses: Tensor) -> Tensor:
    """Merge the results of parts one by one: a part is like a tile of one key.

    Args:
        update: adds a part.
        outs: ``[parts, H, D]``.
        lses: ``[parts, H]``, which take the place of scores.

    Returns:
        ``[H, D]``.
    """
    heads, dims = outs.shape[1:]
    state = State(torch.full((heads,), -torch.inf), torch.zeros(heads), torch.zeros(heads, dims))
    for out, lse in zip(outs, lses, strict=True):
        state = update(state, lse[:, None], out[:, None])
    return state.acc / state.total[:, None]


ADDED_PARTS: Mapping[str, Update] = {
    **SUMS,
    "a part's weight is always 1": partial(add_tile, own_peak=True),
    "parts are weighted by lse instead of 2 ** lse": _weighs_by_lse,
    "total counts the parts instead of their weights": _counts_parts,
}
MERGES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    name: partial(merge, update) for name, update in ADDED_PARTS.items()
}
"""Ways to merge the results of parts, with a mistake each, by what to tell the learner."""


def _unscaled(q: Tensor, keys: Tensor, values: Tensor, _: float, w: int | None) -> Tensor:
    return attend(q, keys, values, math.log(2), w)


MISTAKES: Mapping[str, Attend] = {
    **{name: partial(walk, update) for name, update in UPDATES.items()},
    "the keys are averaged instead of the values": _values_are_keys,
    "the scores are not multiplied by scale (which includes log2(e))": _unscaled,
}
"""Attention functions with a mistake each, by what to tell the learner."""
