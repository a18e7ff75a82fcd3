"""min_p, top_k and top_p on the GPU: how far from its peak a row may draw, found without sorting.

The decisions are those of ``sampling/filters.py``, which names the sources. All three keep a row's
most probable tokens, of equal ones the first in the vocabulary. So sort the tokens, in thought, by
gap (see ``weights``) and then by number: no two of them tie, and a filter is one *place* in this
order, an integer; the tokens up to it are kept::

    place        gap's bits (31) │ token (20)

    in order     ■ ■ ■ ■ ■ ■ ■ ■ │ □ □ □ □ □ □ …
                 kept           limit

    top_k        the first place up to which there are k tokens
    top_p        the first place up to which tokens weigh top_p · total
    min_p        the last place whose gap is at most -log(min_p): nothing to be searched

Bits of floating-point numbers that are not negative are ordered as the numbers are. A limit is
searched by halving, as ever: ``lo`` has too little before it, ``hi`` enough.

What makes it fast is how few logits a halving has to read. The first pass of the sampler leaves the
peak of each group of 128 tokens, and a group whose peak is beyond ``hi`` has nothing before ``hi``.
The peaks also tell where to begin: k groups have k peaks, so the k-th nearest peak is a bound, and
20 tokens are in at most 20 of a vocabulary's 1,187 groups (but for ties). When at most
``CANDIDATES`` are left between ``lo`` and ``hi``, they move into registers::

    groups    ░ ░ █ ░ ░ ░ ░ █ ░ █ ░ …    listed if the peak may be kept
    tiles     32 listed groups at a time: 4,096 logits are read
    measure   how many are before a place, and what they weigh         a pass per halving
    gather    those between ``lo`` and ``hi``                          once
    halve     among these alone                                        in registers

Bounding the k-th greatest by the maxima of groups is the first stage of Chern et al., "TPU-KNN: K
Nearest Neighbors at Peak FLOP/s", 2022, https://arxiv.org/abs/2206.14286, which stops there and is
approximate. FlashInfer's ``top_k_mask_logits`` and ``top_p_renorm_probs``, too, search a threshold
instead of sorting, by passes over the whole row: https://docs.flashinfer.ai/api/sampling.html.

A program per row, all at once. With top_k 20 a search is 2 tiles, 8,000 logits, and top_p after it
as many. top_p alone has to weigh the whole row first, 0.3 MB at 150,000 tokens in 16 bits; then it
is as fast, unless the nucleus is wide: one of 2,000 tokens costs the row 6 times, and one of 50,000
10 times. A row without filters ends at once. All sums are of integers: nothing depends on the order
in which threads add.
"""

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
"""So many tokens are searched in registers."""
MOST_TOKENS = 2**20
"""The largest vocabulary: a place holds 20 bits of a token's number."""

TOKEN_BITS = tl.constexpr(20)
LAST_TOKEN = tl.constexpr(2**20 - 1)
EVERYTHING = tl.constexpr((0x7F800000 << 20) | (2**20 - 1))
"""The last place of all; its gap is infinite."""
FARTHEST = tl.constexpr(28.0)
"""Tokens beyond this gap weigh nothing, 2**40 * exp(-28) < 1: whether they are kept is the same."""


def find_limits(
    logits: Tensor,
    peaks: Tensor,
    group_peaks: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
) -> Tensor:
    """The last place that the filters of each row keep; int64 ``[N]``.

    Args:
        logits: ``[N, V]``, contiguous.
        peaks: ``[N, chunks]`` float32: the highest logit of each chunk.
        group_peaks: ``[N, groups]`` float32: of each group; -inf for those past ``V``.
        temperature: ``[N]`` float32; 0: greedy, for which nothing is searched.
        top_k: ``[N]`` int32; 0 or less: all.
        top_p: ``[N]`` float64; 1: all.
        min_p: ``[N]`` float32: its logarithm; -inf: all.
    """
    rows, vocab_size = logits.shape
    assert vocab_size <= MOST_TOKENS  # noqa: S101 - the largest known has a quarter of that
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
    heat = tl.load(temperature + row)
    k = tl.load(top_k + row)
    p = tl.load(top_p + row)
    limit = place_of(tl.abs(tl.load(min_p + row)), LAST_TOKEN)
    tl.store(limits + row, limit)
    all_peaks = load_chunks(peaks, row, chunks, -float("inf"), CHUNKS)
    has_k = (k > 0) & (k < vocab_size)
    has_p = p < 1.0
    if not ((heat > 0.0) & (has_k | has_p) & is_sound(all_peaks)):
        return
    peak = tl.max(all_peaks)
    group_gap = gaps(load_chunks(group_peaks, row, groups, -float("inf"), GROUPS), peak, heat)
    the_row = (logits, row, vocab_size, peak, heat, group_gap, listed + row * groups)
    limit = tl.minimum(limit, place_of(FARTHEST, LAST_TOKEN))
    # One after the other through the same instructions: twice as many would not fit their cache.
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
    """Of the places up to ``limit``, the first up to which there is as much as is asked for.

    In the loop, what is up to ``lo`` measures less than ``goal``, and what is up to ``hi`` enough.
    """
    vocab_size, group_gap = the_row[2], the_row[5]
    near = tl.sum((group_gap < gap_of(limit)).to(tl.int32))
    count_hi = tl.full((), vocab_size, tl.int32)  # or less
    goal = asked
    if by_weight | (near < asked):
        count_hi, measure, _ = _measure(the_row, limit, by_weight, GROUP, TILE_GROUPS)
        all_there_is = measure.to(tl.float64)
        goal = tl.where(by_weight, asked * all_there_is, tl.minimum(asked, all_there_is))
    hi = limit
    lo = tl.full((), -1, tl.int64)
    count_lo = count_hi * 0
    measure_lo = lo * 0
    middle = _bound(group_gap, goal, by_weight, limit)
    # The second follows from the first, and makes sure that no numbers let this run forever.
    while (count_hi - count_lo > CANDIDATES) & (hi - lo > 1):
        count, measure, gap = _measure(the_row, middle, by_weight, GROUP, TILE_GROUPS)
        reached = measure.to(tl.float64) >= goal
        # If the nearer half is full of ties, halving their gap would come to no end.
        hi = tl.where(reached, tl.minimum(middle, place_of(gap, LAST_TOKEN)), hi)
        count_hi = tl.where(reached, count, count_hi)
        lo = tl.where(reached, lo, middle)
        count_lo = tl.where(reached, count_lo, count)
        measure_lo = tl.where(reached, measure_lo, measure)
        middle = _between(lo, hi)
    number = _gather(the_row, lo, hi, candidates, GROUP, TILE_GROUPS)
    index = tl.arange(0, CANDIDATES)
    places = tl.load(candidates + index, mask=index < number, other=EVERYTHING)
    return _halve(places, _measures(gap_of(places), by_weight), measure_lo, goal, lo, hi)


@triton.jit
def _halve(places, measures, measure_lo, goal, lo, hi):
    """The same, where all places between are at hand; each has its own measure."""
    while hi - lo > 1:
        middle = _between(lo, hi)
        before = places <= middle
        measure = measure_lo + tl.sum(tl.where(before & (places > lo), measures, 0))
        reached = measure.to(tl.float64) >= goal
        # From one place that is there to another: when both are the same, it is the one.
        hi = tl.where(reached, tl.max(tl.where(before, places, -1)), hi)
        lo = tl.where(reached, lo, tl.min(tl.where(before, EVERYTHING, places)) - 1)
        measure_lo = tl.where(reached, measure_lo, measure)
    return hi


@triton.jit
def _bound(group_gap, goal, by_weight, limit):
    """A place to begin with; most often the peaks of the groups alone tell one that is enough."""
    # Those at the limit's own gap may be beyond it.
    measures = tl.where(group_gap < gap_of(limit), _measures(group_gap, by_weight), 0)
    nothing = tl.full((), -1, tl.int64)
    bound = _between(nothing, limit)
    if tl.sum(measures).to(tl.float64) >= goal:
        # A group's number stands for its peak's.
        places = place_of(group_gap, tl.arange(0, group_gap.shape[0]))
        last = _halve(places, measures, nothing * 0, goal, nothing, limit)
        bound = place_of(gap_of(last), LAST_TOKEN)
    return bound


@triton.jit
def _measures(gap, by_weight):
    """What a token counts: its weight, or 1."""
    return tl.where(by_weight, integer_weights(gap), 1)


@triton.jit
def _measure(the_row, limit, by_weight, GROUP: tl.constexpr, TILE_GROUPS: tl.constexpr):
    """How many tokens are up to ``limit``, what they measure, and the greatest gap of them."""
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
    """Write down the places after ``lo`` up to ``hi``; how many."""
    number = _list_groups(the_row, hi)
    found = number * 0
    for first in range(0, number, TILE_GROUPS):
        token, gap = _load_listed(the_row, first, number, GROUP, TILE_GROUPS)
        places = tl.reshape(place_of(gap, token), (TILE_GROUPS * GROUP,))
        wanted = (places > lo) & (places <= hi)
        slots = found + tl.cumsum(wanted.to(tl.int32)) - 1
        tl.store(candidates + slots, places, mask=wanted)
        found += tl.sum(wanted.to(tl.int32))
    tl.debug_barrier()  # they are read by other threads than have written them
    return found


@triton.jit
def _list_groups(the_row, limit):
    """Write down the groups that may have tokens up to ``limit``; how many."""
    group_gap, listed = the_row[5], the_row[6]
    near = group_gap <= gap_of(limit)
    slots = tl.cumsum(near.to(tl.int32)) - 1
    tl.debug_barrier()  # no thread reads the list before any more
    tl.store(listed + slots, tl.arange(0, group_gap.shape[0]), mask=near)
    tl.debug_barrier()
    return tl.sum(near.to(tl.int32))


@triton.jit
def _load_listed(the_row, first, number, GROUP: tl.constexpr, TILE_GROUPS: tl.constexpr):
    """Tokens and gaps of a tile of listed groups: ``[TILE_GROUPS, GROUP]``."""
    logits, row, vocab_size, peak, heat, _, listed = the_row
    index = first + tl.arange(0, TILE_GROUPS)
    group = tl.load(listed + index, mask=index < number, other=vocab_size)  # past all tokens
    token = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    return token, gaps(load_logits(logits, row, token, vocab_size), peak, heat)


@triton.jit
def _between(lo, hi):
    """A place after ``lo`` and before ``hi``: half way by gap, as long as there is one."""
    by_gap = place_of((gap_of(tl.maximum(lo, 0)) + gap_of(hi)) * 0.5, LAST_TOKEN)
    return tl.where((lo < by_gap) & (by_gap < hi), by_gap, lo + (hi - lo) // 2)


@triton.jit
def is_kept(gap, token, limit):  # noqa: ANN201 - Triton's language
    """Whether tokens are up to a limit: ``place_of(gap, token) <= limit``, in 32 bits."""
    edge = gap_of(limit)
    return (gap < edge) | ((gap == edge) & (token <= (limit & LAST_TOKEN).to(tl.int32)))


@triton.jit
def place_of(gap, token):  # noqa: ANN201 - Triton's language
    """int64; of tokens and of gaps, both no less than 0."""
    bits = tl.cast(gap, tl.float32).to(tl.int32, bitcast=True).to(tl.int64)
    return (bits << TOKEN_BITS) | token


@triton.jit
def gap_of(place):  # noqa: ANN201 - Triton's language
    """The gap in a place."""
    return (place >> TOKEN_BITS).to(tl.int32).to(tl.float32, bitcast=True)
