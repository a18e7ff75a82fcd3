"""Well-known mistakes in attention, each as a function that makes it."""

from collections.abc import Callable

import torch
from torch import Tensor

from minimal_vllm.attention.interface import AttentionOptions
from minimal_vllm.attention.reference import attend

Attend = Callable[[Tensor, Tensor, Tensor, float, int | None], Tensor]
"""Called with queries, keys, values, scale and window of one request."""


def well_known(block_size: int, options: AttentionOptions) -> dict[str, Attend]:
    """Return well-known mistakes: descriptions, and attention functions that make the mistakes."""

    def full_blocks(q: Tensor, keys: Tensor, values: Tensor, scale: float, w: int | None) -> Tensor:
        full = len(keys) // block_size * block_size
        return attend(q, keys[:full], values[:full], scale, w)

    def no_softcap(q: Tensor, keys: Tensor, values: Tensor, scale: float, w: int | None) -> Tensor:
        return attend(q, keys, values, scale, w, None, options.sinks)

    def no_sinks(q: Tensor, keys: Tensor, values: Tensor, scale: float, w: int | None) -> Tensor:
        return attend(q, keys, values, scale, w, options.softcap)

    return {
        "hidden scores are 0 instead of -inf": lambda q, k, v, s, _: _masked_with(
            0, False, q, k, v, s
        ),
        "scores are hidden after the softmax, so that the weights don't sum to 1": (
            lambda q, k, v, s, _: _masked_with(0, True, q, k, v, s)
        ),
        "the weights are not divided by their sum": _not_divided,
        "the keys are averaged instead of the values": lambda q, k, _v, s, w: attend(q, k, k, s, w),
        "only the step's new tokens are attended to": lambda q, k, v, s, w: attend(
            q, k[-len(q) :], v[-len(q) :], s, w
        ),
        "the softcap is ignored": no_softcap,
        "the sinks are ignored": no_sinks,
        "a token also attends to later tokens: the causal mask is missing": _no_mask,
        "the positions of the new tokens are counted from 0, as if none came before": _from_zero,
        "a token does not attend to itself": _not_itself,
        "the last, partly filled block is left out": full_blocks,
        "query head h uses kv head h % K instead of h // (H / K)": _interleaved,
        "the scores are not multiplied by scale": lambda q, k, v, _, w: attend(q, k, v, 1.0, w),
        "the scale is applied twice": lambda q, k, v, s, w: attend(q, k, v, s * s, w),
        "the window is ignored": lambda q, k, v, s, _: attend(q, k, v, s, None),
        "the window is one token too long": lambda q, k, v, s, w: attend(q, k, v, s, w and w + 1),
        "the window is one token too short": lambda q, k, v, s, w: attend(
            q, k, v, s, w and max(w - 1, 1)
        ),
    }


def _no_mask(q: Tensor, keys: Tensor, values: Tensor, scale: float, _: int | None) -> Tensor:
    # A query at the last position attends to all keys.
    rows = [attend(row[None], keys, values, scale, None) for row in q]
    return torch.cat(rows)


def _from_zero(q: Tensor, keys: Tensor, values: Tensor, scale: float, w: int | None) -> Tensor:
    rows = [
        attend(row[None], keys[: index + 1], values[: index + 1], scale, w)
        for index, row in enumerate(q)
    ]
    return torch.cat(rows)


def _not_itself(q: Tensor, keys: Tensor, values: Tensor, scale: float, w: int | None) -> Tensor:
    first = len(keys) - len(q)
    rows = [
        attend(row[None], keys[: first + index], values[: first + index], scale, w)
        for index, row in enumerate(q)
    ]
    return torch.cat(rows)


def _interleaved(q: Tensor, keys: Tensor, values: Tensor, scale: float, w: int | None) -> Tensor:
    group = q.shape[1] // keys.shape[1]
    return attend(q, keys.repeat(1, group, 1), values.repeat(1, group, 1), scale, w)


def _masked_with(number: float, after: bool, q: Tensor, k: Tensor, v: Tensor, s: float) -> Tensor:
    return _averaged(*_scores(q, k, s), v, hidden=number, after=after)


def _not_divided(q: Tensor, k: Tensor, v: Tensor, s: float, _: int | None) -> Tensor:
    scores, visible = _scores(q, k, s)
    hidden = scores.masked_fill(~visible, -torch.inf)
    weights = (hidden - hidden.amax(-1, keepdim=True)).exp()
    return _weighted(weights, v)


def _scores(q: Tensor, keys: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return scores ``[H, n, m]``, and whether each is visible, ``[n, m]``."""
    keys = keys.repeat_interleave(q.shape[1] // keys.shape[1], 1)
    scores = torch.einsum("nhd,mhd->hnm", q, keys) * scale
    return scores, torch.ones(len(q), len(keys)).tril(len(keys) - len(q)).bool()


def _averaged(
    scores: Tensor, visible: Tensor, values: Tensor, *, hidden: float, after: bool
) -> Tensor:
    """Average values, with hidden scores, or weights if ``after``, replaced by a number."""
    if after:
        return _weighted(scores.softmax(-1).masked_fill(~visible, hidden), values)
    return _weighted(scores.masked_fill(~visible, hidden).softmax(-1), values)


def _weighted(weights: Tensor, values: Tensor) -> Tensor:
    values = values.repeat_interleave(len(weights) // values.shape[1], 1)
    return torch.einsum("hnm,mhd->nhd", weights, values)
