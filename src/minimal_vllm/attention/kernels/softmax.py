"""What all attention kernels do: take some more keys, or a partial result, into a running softmax.

Online softmax (Milakov and Gimelshein 2018; Dao et al., *FlashAttention*, 2022, section 3.1): with
each tile of keys the highest score so far may rise; what was summed before fades accordingly.
"""

import triton
import triton.language as tl


@triton.jit
def nothing_seen(ROWS: tl.constexpr, DIMS: tl.constexpr):  # noqa: ANN201 - Triton's language
    """``peak``, ``total`` and ``mean`` before any keys; see ``take_keys``."""
    peak = tl.full([ROWS], -float("inf"), tl.float32)
    return peak, tl.zeros([ROWS], tl.float32), tl.zeros([ROWS, DIMS], tl.float32)


@triton.jit
def take_keys(  # noqa: ANN201 - Triton's language
    q_tile,
    key,
    value,
    place,
    is_key,
    visible,
    scale,
    peak,
    total,
    mean,
    MASKED: tl.constexpr,
    MAY_SEE_NONE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Take a tile of keys in.

    Args:
        q_tile: ``[rows, dims]``.
        key: the keys' memory.
        value: the values' memory.
        place: ``[keys, dims]``: where in both the tile is.
        is_key: ``[keys, dims]``: what of it exists; the rest counts as zeros.
        visible: ``[rows or 1, keys]``, if ``MASKED``: who sees whom.
        scale: of the scores, times log2(e): exponentials are taken to the base 2.
        peak: ``[rows]`` float32: the highest score so far.
        total: ``[rows]`` float32: the sum of the exponentials.
        mean: ``[rows, dims]`` float32: the weighted sum of the values.
        MASKED: whether some keys may be hidden from some rows.
        MAY_SEE_NONE: whether a row may have seen no key even after this tile.
        PRECISION: of the products.

    Returns:
        ``peak``, ``total`` and ``mean`` with the tile in them.
    """
    keys = tl.load(key + place, mask=is_key, other=0.0)
    scores = tl.dot(q_tile, tl.trans(keys), input_precision=PRECISION) * scale
    if MASKED:
        scores = tl.where(visible, scores, -float("inf"))
    new_peak = tl.maximum(peak, tl.max(scores, 1))
    # -inf - -inf would be NaN.
    safe_peak = tl.where(new_peak == -float("inf"), 0.0, new_peak) if MAY_SEE_NONE else new_peak
    weights = tl.exp2(scores - safe_peak[:, None])
    fade = tl.exp2(peak - safe_peak)
    total = total * fade + tl.sum(weights, 1)
    values = tl.load(value + place, mask=is_key, other=0.0)
    mean = mean * fade[:, None]
    mean = tl.dot(weights.to(values.dtype), values, mean, input_precision=PRECISION)
    return new_peak, total, mean


@triton.jit
def leave_part(  # noqa: ANN201 - Triton's language
    partial_out,
    partial_lse,
    place,
    arrival,
    is_row,
    is_real,
    dim,
    peak,
    total,
    mean,
    D: tl.constexpr,
):
    """Leave a partial result for the program that comes last, which merges them all.

    All but ``arrival`` is as in ``merge_part``: an int32, how many programs have left theirs. It is
    counted up, and what it was is returned.
    """
    part_place = partial_out + place[:, None] * D + dim[None, :]
    tl.store(part_place, mean / total[:, None], mask=is_real)
    tl.store(partial_lse + place, peak + tl.log2(total), mask=is_row)
    tl.debug_barrier()  # all of this program's threads have written …
    return tl.atomic_add(arrival, 1, sem="acq_rel")  # … before this is seen


@triton.jit
def merge_part(  # noqa: ANN201 - Triton's language
    partial_out,
    partial_lse,
    place,
    is_row,
    is_real,
    dim,
    peak,
    total,
    mean,
    D: tl.constexpr,
):
    """Take in what another program has computed over other keys (flash-decoding's merge).

    Args:
        partial_out: ``[…, D]`` float32: means of values.
        partial_lse: ``[…]`` float32: base-2 logarithms of the sums of exponentials; -inf: no keys.
        place: ``[rows]``: where in both the rows are.
        is_row: ``[rows]``: which of them exist.
        is_real: ``[rows, dims]``: which of their numbers exist.
        dim: ``[dims]``.
        peak: as in ``take_keys``.
        total: as in ``take_keys``.
        mean: as in ``take_keys``.
        D: numbers per row.

    Returns:
        ``peak``, ``total`` and ``mean`` with the part in them.
    """
    # ``.cg``: from the L2 cache, which all processors share; the L1 cache may hold what was there.
    lse = tl.load(partial_lse + place, mask=is_row, other=0.0, cache_modifier=".cg")
    part_place = partial_out + place[:, None] * D + dim[None, :]
    part = tl.load(part_place, mask=is_real, other=0.0, cache_modifier=".cg")
    new_peak = tl.maximum(peak, lse)
    fade, weight = tl.exp2(peak - new_peak), tl.exp2(lse - new_peak)
    return new_peak, total * fade + weight, mean * fade[:, None] + part * weight[:, None]


@triton.jit
def merge_parts(  # noqa: ANN201 - Triton's language
    partial_out,
    partial_lse,
    place,
    step,
    count,
    is_row,
    is_real,
    dim,
    peak,
    total,
    mean,
    D: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """Take in ``count`` parts, the rows of each ``step`` behind those of the one before.

    So many are read at once: one after the other would be a wait each. All else is as in
    ``merge_part``, with the ``place`` of the first part.
    """
    for start in range(0, count, AT_ONCE):
        for index in tl.static_range(AT_ONCE):
            part = tl.minimum(start + index, count - 1)
            new_peak, new_total, new_mean = merge_part(
                partial_out, partial_lse, place + part * step, is_row, is_real, dim,
                peak, total, mean, D,
            )  # fmt: skip
            exists = start + index < count
            peak = tl.where(exists, new_peak, peak)
            total = tl.where(exists, new_total, total)
            mean = tl.where(exists, new_mean, mean)
    return peak, total, mean
