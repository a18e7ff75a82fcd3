"""The running softmax that all attention kernels share.

Online softmax (Milakov and Gimelshein 2018; Dao et al., *FlashAttention*, 2022, section 3.1): a
kernel walks over the keys in tiles and keeps three things per query head. When a tile brings a
higher score, everything that was summed before it is scaled down::

    fade  = 2 ** (old peak - new peak)
    total = total * fade + sum of 2 ** (score - new peak)
    acc   = acc   * fade + sum of 2 ** (score - new peak) * value

``acc / total`` is the result. A partial result, computed by another program over other keys, is
merged in the same way.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634
"""Factor of a score, so that exponentials can be taken to the base 2."""
_PER_NAT = tl.constexpr(LOG2_E)
_LARGEST = tl.constexpr(65504.0)
"""Largest number in float16."""


class Softmax(NamedTuple):
    """State of a running softmax, which a kernel keeps in registers while it walks over keys."""

    peak: tl.tensor
    """``[rows]`` float32: the highest score so far; -inf before the first key."""
    total: tl.tensor
    """``[rows]`` float32: the sum of the weights ``2 ** (score - peak)``."""
    acc: tl.tensor
    """``[rows, dims]`` float32: the sum of the values, each times its weight."""


class Partials(NamedTuple):
    """Results over parts of a context, to be merged. All layers use the same memory."""

    out: Tensor
    """``[parts, H, D]`` float32: weighted means of values."""
    lse: Tensor
    """``[parts, H]`` float32: base-2 logarithms of the sums of exponentials; -inf: no keys."""


@triton.jit
def empty_softmax(ROWS: tl.constexpr, DIMS: tl.constexpr):  # noqa: ANN201 - Triton's language
    """Return the ``Softmax`` over no keys."""
    peak = tl.full([ROWS], -float("inf"), tl.float32)
    return Softmax(peak, tl.zeros([ROWS], tl.float32), tl.zeros([ROWS, DIMS], tl.float32))


@triton.jit
def as_factor(q_tile, cache):  # noqa: ANN201 - Triton's language
    """Return queries in the dtype in which they are multiplied with the keys of a cache.

    Each number in FP8 is exact in float16, to which a GPU converts two of them with one
    instruction. An H200 converts them to bfloat16 more slowly than it reads them from memory.

    Args:
        q_tile: queries.
        cache: ``LayerCache`` of pointers.
    """
    if q_tile.dtype == tl.bfloat16 and cache.key.dtype.element_ty == tl.float8e4nv:
        q_tile = tl.clamp(q_tile.to(tl.float32), -_LARGEST, _LARGEST).to(tl.float16)
    return q_tile


@triton.jit
def take_keys(  # noqa: ANN201 - Triton's language
    q_tile,
    cache,
    offsets,
    is_key,
    visible,
    scale,
    softmax,
    MASKED: tl.constexpr,
    MAY_SEE_NONE: tl.constexpr,
    PRECISION: tl.constexpr,
    SOFTCAP: tl.constexpr = 0.0,
):
    """Add a tile of keys and values to a running softmax.

    Args:
        q_tile: ``[rows, dims]``, from ``as_factor``.
        cache: ``LayerCache`` of pointers to the layer's keys and values.
        offsets: ``[keys, dims]``: the tile's offsets from both pointers.
        is_key: ``[keys, dims]`` bool: which of the tile's numbers exist; others count as zeros.
        visible: ``[rows or 1, keys]`` bool: keys that each row attends to; used if ``MASKED``.
        scale: factor of the scores, log2(e) included: exponentials are taken to the base 2.
        softmax: ``Softmax`` over the keys before.
        MASKED: whether some keys may be hidden from some rows.
        MAY_SEE_NONE: whether a row may have seen no key even after this tile.
        PRECISION: precision of the matrix products, as in ``tl.dot``.
        SOFTCAP: bound of the scores, log2(e) included; 0: none.

    Returns:
        ``Softmax`` with the tile's keys in it.
    """
    # A cache in FP8 is converted in registers: products are as exact as those of 16 bits.
    keys = tl.load(cache.key + offsets, mask=is_key, other=0.0).to(q_tile.dtype)
    scores = tl.dot(q_tile, tl.trans(keys), input_precision=PRECISION) * scale
    if SOFTCAP > 0:  # Triton refuses a bare float as a condition
        # tanh(y) is 2 * sigmoid(2 * y) - 1.
        scores = SOFTCAP * (2 * tl.sigmoid(2 / SOFTCAP * scores) - 1)
    if MASKED:
        scores = tl.where(visible, scores, -float("inf"))
    peak = tl.maximum(softmax.peak, tl.max(scores, 1))
    # -inf - -inf would be NaN.
    safe_peak = tl.where(peak == -float("inf"), 0.0, peak) if MAY_SEE_NONE else peak
    weights = tl.exp2(scores - safe_peak[:, None])
    fade = tl.exp2(softmax.peak - safe_peak)
    total = softmax.total * fade + tl.sum(weights, 1)
    values = tl.load(cache.value + offsets, mask=is_key, other=0.0).to(q_tile.dtype)
    if cache.value.dtype.element_ty == tl.float8e4nv and values.dtype == tl.float16:
        values = _converted(values)
    acc = softmax.acc * fade[:, None]
    acc = tl.dot(weights.to(values.dtype), values, acc, input_precision=PRECISION)
    return Softmax(peak, total, acc)


@triton.jit
def _converted(values):
    """Return values that were converted from FP8 to float16 as they are.

    This keeps Triton from transposing the bytes before it converts them: it would do so one by one,
    and a GPU has instructions to transpose 16-bit numbers. It moves a change of layout across an
    operation only if that has no operand like the second one here, which the assembly ignores.
    """
    place = tl.arange(0, values.shape[0])[:, None] + tl.arange(0, values.shape[1])[None, :]
    return tl.inline_asm_elementwise(
        "mov.b32 $0, $1;",
        "=r,r,r",
        [values, place.to(tl.int16)],
        dtype=tl.float16,
        is_pure=True,
        pack=2,
    )


@triton.jit
def take_sinks(sinks, heads, is_row, softmax):  # noqa: ANN201 - Triton's language
    """Add each head's sink, a score without a value, to a running softmax.

    Args:
        sinks: pointer to the scores, ``[H]``.
        heads: ``[rows]``: the rows' query heads.
        is_row: ``[rows]`` bool: which rows exist.
        softmax: ``Softmax`` over the keys.

    Returns:
        ``Softmax`` with the sinks in it.
    """
    sink = tl.load(sinks + heads, mask=is_row, other=0.0).to(tl.float32) * _PER_NAT
    peak = tl.maximum(softmax.peak, sink)
    fade = tl.exp2(softmax.peak - peak)
    total = softmax.total * fade + tl.exp2(sink - peak)
    return Softmax(peak, total, softmax.acc * fade[:, None])


@triton.jit
def leave_part(  # noqa: ANN201 - Triton's language
    partials, index, is_row, softmax, arrival, D: tl.constexpr
):
    """Store a partial result for the program that finishes last, which merges all of them.

    Args:
        partials: as in ``merge_part``.
        index: as in ``merge_part``.
        is_row: as in ``merge_part``.
        softmax: ``Softmax`` over this program's keys.
        arrival: pointer to an int32, the number of programs that have stored theirs. It is
            incremented.
        D: as in ``merge_part``.

    Returns:
        The value of ``arrival`` before it was incremented.
    """
    dim = tl.arange(0, softmax.acc.shape[1])
    exists = is_row[:, None] & (dim < D)[None, :]
    pointers = partials.out + index[:, None] * D + dim[None, :]
    tl.store(pointers, softmax.acc / softmax.total[:, None], mask=exists)
    tl.store(partials.lse + index, softmax.peak + tl.log2(softmax.total), mask=is_row)
    tl.debug_barrier()  # all of this program's threads have written …
    return tl.atomic_add(arrival, 1, sem="acq_rel")  # … before this is seen


@triton.jit
def merge_part(  # noqa: ANN201 - Triton's language
    partials, index, is_row, softmax, D: tl.constexpr
):
    """Merge the result of another program over other keys (flash-decoding's merge).

    Args:
        partials: ``Partials`` of pointers: means of values ``[…, D]`` and base-2 logarithms of the
            sums of exponentials ``[…]``, both float32.
        index: ``[rows]``: the rows' indices in both.
        is_row: ``[rows]`` bool: which rows exist.
        softmax: ``Softmax`` over the keys before.
        D: numbers per row.

    Returns:
        ``Softmax`` with the part's keys in it.
    """
    # ``.cg``: from the L2 cache, which all SMs share; an SM's L1 cache may hold what was there.
    lse = tl.load(partials.lse + index, mask=is_row, other=0.0, cache_modifier=".cg")
    dim = tl.arange(0, softmax.acc.shape[1])
    exists = is_row[:, None] & (dim < D)[None, :]
    pointers = partials.out + index[:, None] * D + dim[None, :]
    part = tl.load(pointers, mask=exists, other=0.0, cache_modifier=".cg")
    peak = tl.maximum(softmax.peak, lse)
    fade, weight = tl.exp2(softmax.peak - peak), tl.exp2(lse - peak)
    total = softmax.total * fade + weight
    acc = softmax.acc * fade[:, None] + part * weight[:, None]
    return Softmax(peak, total, acc)


@triton.jit
def merge_parts(  # noqa: ANN201 - Triton's language
    partials, index, stride, count, is_row, softmax, D: tl.constexpr, AT_ONCE: tl.constexpr
):
    """Merge ``count`` partial results; see ``merge_part``.

    Args:
        partials: as in ``merge_part``.
        index: as in ``merge_part``: of the first part's rows.
        stride: distance between the rows of one part and those of the next.
        count: number of parts.
        is_row: as in ``merge_part``.
        softmax: ``Softmax`` over the keys before.
        D: as in ``merge_part``.
        AT_ONCE: number of parts whose loads are issued together, to wait for memory only once.

    Returns:
        ``Softmax`` with the keys of all parts in it.
    """
    for start in range(0, count, AT_ONCE):
        for offset in tl.static_range(AT_ONCE):
            part = tl.minimum(start + offset, count - 1)
            merged = merge_part(partials, index + part * stride, is_row, softmax, D)
            exists = start + offset < count
            softmax = Softmax(
                tl.where(exists, merged.peak, softmax.peak),
                tl.where(exists, merged.total, softmax.total),
                tl.where(exists, merged.acc, softmax.acc),
            )
    return softmax


@triton.jit
def merge_compactly(  # noqa: ANN201 - Triton's language
    partials,
    index,
    stride,
    count,
    num_rows,
    MOST: tl.constexpr,
    D: tl.constexpr,
    DIMS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Merge ``count`` partial results of some rows, and of nothing else.

    A tile of ``ROWS`` rows holds many parts of these rows, which are loaded together. With
    ``merge_parts``, whose rows are those of a matrix product, most rows would be empty.

    Args:
        partials: as in ``merge_part``.
        index: index of the first part of the first row. The others lie beside it.
        stride: as in ``merge_parts``.
        count: number of parts.
        num_rows: number of rows.
        MOST: maximum number of rows.
        D: numbers per row.
        DIMS: ``D`` or the next power of two.
        ROWS: rows of the tile, a power of two.

    Returns:
        ``Softmax`` of ``GROUP`` rows with the keys of all parts in it; ``GROUP`` is ``MOST`` or the
        next power of two.
    """
    GROUP: tl.constexpr = 1 << (MOST - 1).bit_length()
    PARTS: tl.constexpr = ROWS // GROUP
    part, member = tl.arange(0, ROWS) // GROUP, tl.arange(0, ROWS) % GROUP
    dim = tl.arange(0, DIMS)
    peak = tl.full([GROUP], -float("inf"), tl.float32)
    total = tl.zeros([GROUP], tl.float32)
    acc = tl.zeros([GROUP, DIMS], tl.float32)
    for start in range(0, count, PARTS):
        exists = (start + part < count) & (member < num_rows)
        row = index + (start + part) * stride + member
        lse = tl.load(partials.lse + row, mask=exists, other=-float("inf"), cache_modifier=".cg")
        values = tl.load(
            partials.out + row[:, None] * D + dim[None, :],
            mask=exists[:, None] & (dim < D)[None, :], other=0.0, cache_modifier=".cg",
        )  # fmt: skip
        lse = tl.reshape(lse, [PARTS, GROUP])
        new_peak = tl.maximum(peak, tl.max(lse, 0))
        safe_peak = tl.where(new_peak == -float("inf"), 0.0, new_peak)  # of a row of padding
        weights = tl.exp2(lse - safe_peak[None, :])
        fade = tl.exp2(peak - safe_peak)
        total = total * fade + tl.sum(weights, 0)
        weighted = tl.reshape(values, [PARTS, GROUP, DIMS]) * weights[:, :, None]
        acc = acc * fade[:, None] + tl.sum(weighted, 0)
        peak = new_peak
    return Softmax(peak, total, acc)
