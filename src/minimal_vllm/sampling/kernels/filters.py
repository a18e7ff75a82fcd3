"""min_p, top_k and top_p on the GPU: the last token that each row may draw, found without sorting.

The decisions are those of ``sampling/filters.py``, which names the sources. All three filters keep
a row's most probable tokens; of equally probable tokens, the first in the vocabulary. Imagine the
tokens sorted by gap (see ``weights``), then by token id. An integer, the *sort key*, is different
for each token and has this order. A filter is a limit: it keeps the tokens up to one key::

    key          gap's bits (31) │ token id (20)

    in order     ■ ■ ■ ■ ■ ■ ■ ■ │ □ □ □ □ □ □ …
                 kept           limit

    top_k        the first key up to which there are k tokens
    top_p        the first key up to which tokens weigh top_p · total
    min_p        the last key whose gap is at most -log(min_p): needs no search

Bits of floating-point numbers that are not negative have the order of the numbers. A limit is found
by binary search: too little lies up to ``lo``, and enough up to ``hi``.

It is fast because a step of the search reads few logits. The first pass of the sampler stores the
peak of each group of 128 tokens, and a group whose peak lies beyond ``hi`` has no token up to
``hi``. The peaks also tell where to begin: k groups have k peaks, so the k-th nearest peak is a
bound, and 20 tokens are in at most 20 of a vocabulary's 1,187 groups (except for ties). When at
most ``CANDIDATES`` tokens are left between ``lo`` and ``hi``, they move into registers::

    groups    ░ ░ █ ░ ░ ░ ░ █ ░ █ ░ …    listed if the peak may be kept
    tiles     32 listed groups at a time: 4,096 logits are read
    measure   how many tokens are up to a key, and what they weigh     a pass per step
    gather    those between ``lo`` and ``hi``                          once
    halve     among these alone                                        in registers

Bounding the k-th greatest by the maxima of groups is the first stage of Chern et al., "TPU-KNN: K
Nearest Neighbors at Peak FLOP/s", 2022, https://arxiv.org/abs/2206.14286, which stops there and is
approximate. FlashInfer's ``top_k_mask_logits`` and ``top_p_renorm_probs`` also search a threshold
instead of sorting, by passes over the whole row: https://docs.flashinfer.ai/api/sampling.html.

One program per row, all at once. With top_k 20 a search reads 2 tiles, 8,000 logits, and top_p
after it as many. top_p alone has to weigh the whole row first, 0.3 MB at 150,000 tokens in 16 bits;
then it is as fast, unless the nucleus is wide: a nucleus of 2,000 tokens reads the row 6 times, one
of 50,000 tokens 10 times. A row without filters ends at once. All sums are of integers, so nothing
depends on the order in which threads add.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.sampling.kernels.weights import (
    gaps,
    integer_weights,
    is_sound,
    load_chunks,
    load_logits,
)

GROUP = 128
"""Tokens per group."""
TILE_GROUPS = 32
"""Groups that are read at once."""
CANDIDATES = 2048
"""Maximum number of tokens that are searched in registers."""
MAX_VOCAB_SIZE = 2**20
"""Maximum size of the vocabulary: a sort key has 20 bits for the token id."""

TOKEN_BITS = tl.constexpr(20)
LAST_TOKEN = tl.constexpr(MAX_VOCAB_SIZE - 1)
EVERYTHING = tl.constexpr((0x7F800000 << 20) | (MAX_VOCAB_SIZE - 1))
"""The last of all sort keys; its gap is infinite."""
FARTHEST = tl.constexpr(28.0)
"""Gap beyond which a token's weight is zero, because 2**40 * exp(-28) < 1."""


class Row(NamedTuple):
    """A row of logits, as the search reads it."""

    logits: tl.tensor
    """Pointer to the logits of all rows."""
    row: tl.tensor
    vocab_size: tl.tensor
    peak: tl.tensor
    temperature: tl.tensor
    group_gaps: tl.tensor
    """``[GROUPS]`` float32: the gap of each group's peak."""
    listed: tl.tensor
    """Pointer to scratch memory for the indices of listed groups."""


def find_limits(
    logits: Tensor,
    peaks: Tensor,
    group_peaks: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
) -> Tensor:
    """Return the sort key of the last token that the filters of each row keep; int64 ``[N]``.

    Args:
        logits: ``[N, V]``, contiguous.
        peaks: ``[N, chunks]`` float32: the highest logit of each chunk.
        group_peaks: ``[N, groups]`` float32: the highest logit of each group; -inf past ``V``.
        temperature: ``[N]`` float32; 0: greedy; nothing is searched.
        top_k: ``[N]`` int32; 0 or less: all.
        top_p: ``[N]`` float64; 1: all.
        min_p: ``[N]`` float32: the logarithm of min_p; -inf: all.
    """
    rows, vocab_size = logits.shape
    assert vocab_size <= MAX_VOCAB_SIZE  # noqa: S101 - the largest known has a quarter
    chunks, groups = peaks.shape[1], group_peaks.shape[1]
    listed = top_k.new_empty(rows, groups)
    candidates = top_k.new_empty(rows, CANDIDATES, dtype=torch.int64)
    limits = top_k.new_empty(rows, dtype=torch.int64)
    _limits_kernel[(rows,)](
        logits, peaks, group_peaks, temperature, top_k, top_p, min_p, listed, candidates, limits,
        vocab_size, chunks, groups, CHUNKS=triton.next_power_of_2(chunks),
        GROUPS=triton.next_power_of_2(groups), GROUP=GROUP, TILE_GROUPS=TILE_GROUPS,
        CANDIDATES=CANDIDATES, num_warps=16, **launch_options(logits),
    )  # fmt: skip
    return limits


@triton.jit(
    do_not_specialize_on_alignment=[
        *("temperature", "top_k", "top_p", "min_p", "listed", "candidates", "limits")
    ]
)
def _limits_kernel(
    logits,
    peaks,
    group_peaks,
    temperature,
    top_k,
    top_p,
    min_p,
    listed,
    candidates,
    limits,
    vocab_size,
    chunks,
    groups,
    CHUNKS: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    TILE_GROUPS: tl.constexpr,
    CANDIDATES: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_previous(EARLY)
    row = tl.program_id(0)
    row_temperature = tl.load(temperature + row)
    k = tl.load(top_k + row)
    p = tl.load(top_p + row)
    limit = sort_key(tl.abs(tl.load(min_p + row)), LAST_TOKEN)
    tl.store(limits + row, limit)
    all_peaks = load_chunks(peaks, row, chunks, -float("inf"), CHUNKS)
    has_k = (k > 0) & (k < vocab_size)
    has_p = p < 1.0
    if not ((row_temperature > 0.0) & (has_k | has_p) & is_sound(all_peaks)):
        return
    peak = tl.max(all_peaks)
    all_group_peaks = load_chunks(group_peaks, row, groups, -float("inf"), GROUPS)
    group_gaps = gaps(all_group_peaks, peak, row_temperature)
    the_row = Row(logits, row, vocab_size, peak, row_temperature, group_gaps, listed + row * groups)
    limit = tl.minimum(limit, sort_key(FARTHEST, LAST_TOKEN))
    # Both filters run through the same instructions: twice as many would not fit into the cache.
    for by_weight in range(2):
        if tl.where(by_weight == 1, has_p, has_k):
            asked = tl.where(by_weight == 1, p, k.to(tl.float64))
            limit = _last_kept(
                the_row, asked, by_weight == 1, limit, candidates + row * CANDIDATES,
                GROUP, TILE_GROUPS, CANDIDATES,
            )  # fmt: skip
    tl.store(limits + row, limit)


@triton.jit
def _last_kept(
    the_row,
    asked,
    by_weight,
    limit,
    candidates,
    GROUP: tl.constexpr,
    TILE_GROUPS: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """Return the first sort key, at most ``limit``, up to which tokens measure ``asked``.

    In the loop, the tokens up to ``lo`` measure less than ``goal``, those up to ``hi`` enough.
    """
    near = tl.sum((the_row.group_gaps < gap_of(limit)).to(tl.int32))
    count_hi = tl.full((), the_row.vocab_size, tl.int32)  # or less
    goal = asked
    if by_weight | (near < asked):
        count_hi, measure, _ = _measure(the_row, limit, by_weight, GROUP, TILE_GROUPS)
        everything = measure.to(tl.float64)
        goal = tl.where(by_weight, asked * everything, tl.minimum(asked, everything))
    hi = limit
    lo = tl.full((), -1, tl.int64)
    count_lo = count_hi * 0
    measure_lo = lo * 0
    middle = _bound(the_row.group_gaps, goal, by_weight, limit)
    # The first condition implies the second, which keeps this finite whatever the numbers are.
    while (count_hi - count_lo > CANDIDATES) & (hi - lo > 1):
        count, measure, gap = _measure(the_row, middle, by_weight, GROUP, TILE_GROUPS)
        reached = measure.to(tl.float64) >= goal
        # If the nearer half is all ties, halving their gap would not make progress.
        hi = tl.where(reached, tl.minimum(middle, sort_key(gap, LAST_TOKEN)), hi)
        count_hi = tl.where(reached, count, count_hi)
        lo = tl.where(reached, lo, middle)
        count_lo = tl.where(reached, count_lo, count)
        measure_lo = tl.where(reached, measure_lo, measure)
        middle = _between(lo, hi)
    number = _gather(the_row, lo, hi, candidates, GROUP, TILE_GROUPS)
    index = tl.arange(0, CANDIDATES)
    keys = tl.load(candidates + index, mask=index < number, other=EVERYTHING)
    return _halve(keys, _measures(gap_of(keys), by_weight), measure_lo, goal, lo, hi)


@triton.jit
def _halve(keys, measures, measure_lo, goal, lo, hi):
    """Search like ``_last_kept``, among given sort keys, each with its measure."""
    while hi - lo > 1:
        middle = _between(lo, hi)
        before = keys <= middle
        measure = measure_lo + tl.sum(tl.where(before & (keys > lo), measures, 0))
        reached = measure.to(tl.float64) >= goal
        # Move to keys that exist: the search ends when both bounds are at the same one.
        hi = tl.where(reached, tl.max(tl.where(before, keys, -1)), hi)
        lo = tl.where(reached, lo, tl.min(tl.where(before, EVERYTHING, keys)) - 1)
        measure_lo = tl.where(reached, measure_lo, measure)
    return hi


@triton.jit
def _bound(group_gaps, goal, by_weight, limit):
    """Return an upper bound to begin the search with, derived from the groups' peaks."""
    # Tokens at the limit's own gap may be beyond it.
    measures = tl.where(group_gaps < gap_of(limit), _measures(group_gaps, by_weight), 0)
    nothing = tl.full((), -1, tl.int64)
    bound = _between(nothing, limit)
    if tl.sum(measures).to(tl.float64) >= goal:
        # A group's index stands for its peak's token id.
        keys = sort_key(group_gaps, tl.arange(0, group_gaps.shape[0]))
        last = _halve(keys, measures, nothing * 0, goal, nothing, limit)
        bound = sort_key(gap_of(last), LAST_TOKEN)
    return bound


@triton.jit
def _measures(gap, by_weight):
    """Return the measure of each token: its weight for top_p, or 1 for top_k."""
    return tl.where(by_weight, integer_weights(gap), 1)


@triton.jit
def _measure(the_row, limit, by_weight, GROUP: tl.constexpr, TILE_GROUPS: tl.constexpr):
    """Return the number of tokens up to ``limit``, their total measure, and their greatest gap."""
    count = tl.zeros((TILE_GROUPS, GROUP), tl.int32)
    measure = tl.zeros((TILE_GROUPS, GROUP), tl.int64)
    farthest = tl.zeros((TILE_GROUPS, GROUP), tl.float32)
    number = _list_groups(the_row, limit)
    for first in range(0, number, TILE_GROUPS):
        token, gap = _load_listed(the_row, first, number, GROUP, TILE_GROUPS)
        kept = is_kept(gap, token, limit)
        count += kept.to(tl.int32)
        measure += tl.where(kept, _measures(gap, by_weight), 0)
        farthest = tl.where(kept, tl.maximum(farthest, gap), farthest)
    return tl.sum(count), tl.sum(measure), tl.max(farthest)


@triton.jit
def _gather(the_row, lo, hi, candidates, GROUP: tl.constexpr, TILE_GROUPS: tl.constexpr):
    """Store the sort keys after ``lo`` up to ``hi``, and return their number."""
    number = _list_groups(the_row, hi)
    found = number * 0
    for first in range(0, number, TILE_GROUPS):
        token, gap = _load_listed(the_row, first, number, GROUP, TILE_GROUPS)
        keys = tl.reshape(sort_key(gap, token), (TILE_GROUPS * GROUP,))
        wanted = (keys > lo) & (keys <= hi)
        slots = found + tl.cumsum(wanted.to(tl.int32)) - 1
        tl.store(candidates + slots, keys, mask=wanted)
        found += tl.sum(wanted.to(tl.int32))
    tl.debug_barrier()  # they are read by other threads than those that wrote them
    return found


@triton.jit
def _list_groups(the_row, limit):
    """Store the indices of groups that may have tokens up to ``limit``; return their number."""
    near = the_row.group_gaps <= gap_of(limit)
    slots = tl.cumsum(near.to(tl.int32)) - 1
    tl.debug_barrier()  # no thread still reads the previous list
    tl.store(the_row.listed + slots, tl.arange(0, near.shape[0]), mask=near)
    tl.debug_barrier()
    return tl.sum(near.to(tl.int32))


@triton.jit
def _load_listed(the_row, first, number, GROUP: tl.constexpr, TILE_GROUPS: tl.constexpr):
    """Return token ids and gaps of a tile of listed groups, each ``[TILE_GROUPS, GROUP]``."""
    index = first + tl.arange(0, TILE_GROUPS)
    past_all_tokens = the_row.vocab_size
    group = tl.load(the_row.listed + index, mask=index < number, other=past_all_tokens)
    token = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    logits = load_logits(the_row.logits, the_row.row, token, the_row.vocab_size)
    return token, gaps(logits, the_row.peak, the_row.temperature)


@triton.jit
def _between(lo, hi):
    """Return a sort key after ``lo`` and before ``hi``: halfway by gap, as long as there is one."""
    by_gap = sort_key((gap_of(tl.maximum(lo, 0)) + gap_of(hi)) * 0.5, LAST_TOKEN)
    return tl.where((lo < by_gap) & (by_gap < hi), by_gap, lo + (hi - lo) // 2)


@triton.jit
def is_kept(gap, token, limit):  # noqa: ANN201 - Triton's language
    """Return whether ``sort_key(gap, token) <= limit``, computed in 32 bits."""
    edge = gap_of(limit)
    return (gap < edge) | ((gap == edge) & (token <= (limit & LAST_TOKEN).to(tl.int32)))


@triton.jit
def sort_key(gap, token):  # noqa: ANN201 - Triton's language
    """Return the sort keys, int64, of tokens with these gaps; neither may be negative."""
    bits = tl.cast(gap, tl.float32).to(tl.int32, bitcast=True).to(tl.int64)
    return (bits << TOKEN_BITS) | token


@triton.jit
def gap_of(key):  # noqa: ANN201 - Triton's language
    """Return the gap in a sort key."""
    return (key >> TOKEN_BITS).to(tl.int32).to(tl.float32, bitcast=True)
