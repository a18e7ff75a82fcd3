"""The router's choice: a few experts for each token, and the tokens of each expert.

One program chooses the experts of one token. It also enters the token in the list of each expert
that it chooses, at the next free place, which an atomic addition reserves::

    logits of token 5 ──►  experts 2, 0        members[2] = 1, 4, 5     counts[2] = 3
                           weights .7, .3      members[0] = 5           counts[0] = 1

An expert's list has the order in which programs happen to run. No result depends on it: each token
is computed on its own, and the results of its experts are added in the token's order.

Bytes: the logits, read once; the floor is the launch. Source of the router: Shazeer et al. 2017,
https://arxiv.org/abs/1701.06538.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.device.launch import launch_options, wait_for_previous

LOWEST = tl.constexpr(-3.0e38)
"""Rank of a logit that is not a number: below all others, above experts that are already chosen."""


@dataclass(frozen=True, slots=True)
class ExpertLists:
    """The tokens of each expert. A *pair* of a token and its n-th expert is ``token * k + n``."""

    counts: Tensor
    """``[E]`` int32: number of pairs of each expert."""
    members: Tensor
    """``[E, T]`` int32: each expert's pairs, in any order. Beyond its count: undefined."""


def route(logits: Tensor, per_token: int, *, normalized: bool) -> tuple[Tensor, Tensor]:
    """Choose each token's experts.

    Args:
        logits: ``[T, E]``, contiguous.
        per_token: number of experts to choose, k.
        normalized: whether a token's weights are scaled to sum to 1.

    Returns:
        Indices of the experts, ``[T, k]`` int32, and their weights, ``[T, k]`` float32. If one of a
        token's logits is not a number, none of its weights is.
    """
    return _launch(logits, per_token, normalized, None)


def route_and_list(
    logits: Tensor, per_token: int, *, normalized: bool
) -> tuple[Tensor, Tensor, ExpertLists]:
    """Choose each token's experts, and list each expert's tokens; see ``route``."""
    tokens, count = logits.shape
    counts = torch.zeros(count, dtype=torch.int32, device=logits.device)
    lists = ExpertLists(counts, counts.new_empty(count, tokens))
    return *_launch(logits, per_token, normalized, lists), lists


def _launch(
    logits: Tensor, per_token: int, normalized: bool, lists: ExpertLists | None
) -> tuple[Tensor, Tensor]:
    tokens, count = logits.shape
    experts = torch.empty((tokens, per_token), dtype=torch.int32, device=logits.device)
    weights = torch.empty((tokens, per_token), device=logits.device)
    _route_kernel[(tokens,)](
        logits,
        experts,
        weights,
        lists.counts if lists else experts,
        lists.members if lists else experts,
        tokens,
        COUNT=count,
        BLOCK=triton.next_power_of_2(count),
        PER_TOKEN=per_token,
        SLOTS=triton.next_power_of_2(per_token),
        NORMALIZED=normalized,
        LISTS=lists is not None,
        num_warps=1,
        **launch_options(logits),
    )
    return experts, weights


@triton.jit(do_not_specialize=["tokens"])
def _route_kernel(
    logits,
    experts,
    weights,
    counts,
    members,
    tokens,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    SLOTS: tl.constexpr,
    NORMALIZED: tl.constexpr,
    LISTS: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_previous(EARLY)
    token = tl.program_id(0)
    expert = tl.arange(0, BLOCK)
    exists = expert < COUNT
    logit = tl.load(logits + token * COUNT + expert, mask=exists, other=float("-inf"))
    logit = logit.to(tl.float32)
    rank, peak, total = rank_experts(logit, exists)
    slot = tl.arange(0, SLOTS)
    chosen = tl.zeros([SLOTS], tl.int32)
    share = tl.zeros([SLOTS], tl.float32)
    for choice in tl.static_range(PER_TOKEN):
        best = tl.max(rank)
        index = tl.min(tl.where(rank == best, expert, BLOCK))  # of equal ones, the first
        chosen = tl.where(slot == choice, index, chosen)
        share = tl.where(slot == choice, tl.exp(best - peak), share)
        rank = tl.where(expert == index, float("-inf"), rank)
    weight = weights_of(share, total, NORMALIZED)
    is_slot = slot < PER_TOKEN
    pair = token * PER_TOKEN + slot
    tl.store(experts + pair, chosen, mask=is_slot)
    tl.store(weights + pair, weight, mask=is_slot)
    if LISTS:
        place = tl.atomic_add(counts + chosen, 1, mask=is_slot)
        tl.store(members + chosen * tokens + place, pair, mask=is_slot)


@triton.jit
def rank_experts(logit, exists):  # noqa: ANN201 - Triton's language
    """Return each expert's rank, the largest logit, and the sum of all shares.

    An expert's share is ``exp(logit - peak)``. The sum is not a number if any logit isn't.

    Args:
        logit: ``[BLOCK]`` float32: the experts' logits; -inf where there is no expert.
        exists: ``[BLOCK]``: whether there is an expert.
    """
    peak = tl.max(logit)
    total = tl.sum(tl.exp(logit - peak))
    rank = tl.where(logit == logit, tl.maximum(logit, LOWEST), LOWEST)
    return tl.where(exists, rank, float("-inf")), peak, total


@triton.jit
def weights_of(share, total, NORMALIZED: tl.constexpr):  # noqa: ANN201 - Triton's language
    """Return the weights of the chosen experts; none is a number if one of the logits isn't.

    Args:
        share: the chosen experts' shares, and zeros; see ``rank_experts``.
        total: the sum of all experts' shares.
        NORMALIZED: whether the weights are scaled to sum to 1.
    """
    weight = share / (tl.sum(share) if NORMALIZED else total)
    return tl.where(total == total, weight, float("nan"))
