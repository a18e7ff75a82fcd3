"""One step of every attention kernel: some more keys come into a running softmax.

Online softmax (Milakov and Gimelshein 2018; Dao et al., *FlashAttention*, 2022, section 3.1): with
each tile of keys the highest score so far may rise; what was summed before fades accordingly.
"""

import triton
import triton.language as tl


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
