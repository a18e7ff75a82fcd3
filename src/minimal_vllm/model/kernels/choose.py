"""Norm, router and choice of experts for a single token, in one kernel.

Each is so small that three kernels would mostly wait for each other. Here a program adds to the
residual stream, normalizes it, and multiplies it with a few rows of the router, whose weights it
loads before the previous kernel has ended. Which program is the last to store its logits, a counter
tells; that one reads them all, and chooses::

    program 0   logits 0 to 3, stream, norm   ┐
    program 1   logits 4 to 7                 ├  counts 1, 2, … ──►  the last: experts, weights
    …                                         ┘

The counter must be 0 at first, and is 0 again afterwards. An expert is chosen if fewer than k
others are better: that compares all pairs at once, instead of looking for the best k times.

Bytes: the router's weights; the floor is the launch. Source of the router: Shazeer et al. 2017,
https://arxiv.org/abs/1701.06538.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.model.kernels.route import rank_experts, weights_of

ROWS, COLUMNS, WARPS = 4, 1024, 4
"""Rows of the router per program, columns multiplied at a time, and warps: the fastest on an
H200."""


def add_norm_and_choose(
    residual: Tensor,
    x: Tensor | None,
    total: Tensor,
    norm: tuple[Tensor, float],
    router: tuple[Tensor, Tensor | None],
    per_token: int,
    counter: Tensor,
    *,
    normalized: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``total = residual + x`` and its norm, and choose the token's experts.

    Args:
        residual: ``[1, hidden]``, contiguous; unchanged, because other programs still read it.
        x: ``[1, hidden]``, contiguous, or None.
        total: ``[1, hidden]``, contiguous; written. If ``x`` is None, ``residual`` itself, not
            written.
        norm: weight of the norm, ``[hidden]``, and the constant added to the mean square.
        router: its weights, ``[E, hidden]``, contiguous, and its bias, ``[E]`` or None.
        per_token: number of experts to choose, k.
        counter: ``[1]`` int32: 0, and 0 again afterwards.
        normalized: whether the token's weights are scaled to sum to 1.

    Returns:
        The norm, ``[1, hidden]``; indices of the experts, ``[1, k]`` int32, best first; and their
        weights, ``[1, k]`` float32. If a logit is not a number, none of the weights is.
    """
    (norm_weight, eps), (weight, bias) = norm, router
    count, size = weight.shape
    normed, logits = torch.empty_like(residual), residual.new_empty(count)
    experts = torch.empty((1, per_token), dtype=torch.int32, device=residual.device)
    weights = torch.empty((1, per_token), device=residual.device)
    _choose_kernel[(triton.cdiv(count, ROWS),)](
        residual, residual if x is None else x, total, norm_weight, eps, weight,
        weight if bias is None else bias, normed, logits, counter, experts, weights,
        ADDS=x is not None, BIAS=bias is not None, SIZE=size,
        COLUMNS=min(COLUMNS, triton.next_power_of_2(size)), COUNT=count,
        BLOCK=triton.next_power_of_2(count), ROWS=ROWS, PER_TOKEN=per_token,
        NORMALIZED=normalized, num_warps=WARPS, **launch_options(residual),
    )  # fmt: skip
    return normed, experts, weights


@triton.jit
def _choose_kernel(
    residual,
    x,
    total,
    norm_weight,
    eps,
    router,
    bias,
    normed,
    logits,
    counter,
    experts,
    weights,
    ADDS: tl.constexpr,
    BIAS: tl.constexpr,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    NORMALIZED: tl.constexpr,
    EARLY: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = row < COUNT
    tiles, stream = (), ()
    for start in tl.static_range(0, SIZE, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        exists = is_row[:, None] & (column < SIZE)[None, :]
        tile = tl.load(router + row[:, None] * SIZE + column[None, :], mask=exists, other=0.0)
        tiles += (tile,)  # type: ignore[assignment]  # Triton's tuples grow
    wait_for_previous(EARLY)
    squares = tl.zeros([COLUMNS], tl.float32)
    products = tl.zeros([ROWS, COLUMNS], tl.float32)
    for step in tl.static_range(len(tiles)):
        column = step * COLUMNS + tl.arange(0, COLUMNS)
        part = tl.load(residual + column, mask=column < SIZE, other=0.0)
        if ADDS:
            part += tl.load(x + column, mask=column < SIZE, other=0.0)
        scale = tl.load(norm_weight + column, mask=column < SIZE, other=0.0)
        wide = part.to(tl.float32)
        squares += wide * wide
        products += tiles[step].to(tl.float32) * (wide * scale.to(tl.float32))
        stream += ((part, scale),)
    # A norm is one factor for the whole vector, so it can be applied after the product.
    factor = tl.rsqrt(tl.sum(squares) / SIZE + eps)
    if tl.program_id(0) == 0:
        for step in tl.static_range(len(tiles)):
            column = step * COLUMNS + tl.arange(0, COLUMNS)
            part, scale = stream[step]
            if ADDS:
                tl.store(total + column, part, mask=column < SIZE)
            unit = (part.to(tl.float32) * factor).to(scale.dtype)
            tl.store(normed + column, unit * scale, mask=column < SIZE)
    logit = tl.sum(products, 1) * factor
    if BIAS:
        logit += tl.load(bias + row, mask=is_row, other=0.0).to(tl.float32)
    tl.store(logits + row, logit.to(logits.dtype.element_ty), mask=is_row)
    tl.debug_barrier()  # all threads have stored before one of them counts
    if tl.atomic_add(counter, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        tl.store(counter, 0)
        _choose(logits, experts, weights, COUNT, BLOCK, PER_TOKEN, NORMALIZED)


@triton.jit
def _choose(
    logits,
    experts,
    weights,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    NORMALIZED: tl.constexpr,
):
    """Store the experts with the highest logits, which other programs have stored just now."""
    expert = tl.arange(0, BLOCK)
    exists = expert < COUNT
    # Volatile: past the cache of the SM, which may have older numbers.
    logit = tl.load(logits + expert, mask=exists, other=float("-inf"), volatile=True)
    rank, peak, total = rank_experts(logit.to(tl.float32), exists)
    is_better = rank[None, :] > rank[:, None]
    is_better |= (rank[None, :] == rank[:, None]) & (expert[None, :] < expert[:, None])
    place = tl.sum(is_better.to(tl.int32), 1)
    is_chosen = place < PER_TOKEN
    share = tl.where(is_chosen, tl.exp(rank - peak), 0.0)
    weight = weights_of(share, total, NORMALIZED)
    tl.store(experts + place, expert, mask=is_chosen)
    tl.store(weights + place, weight, mask=is_chosen)
