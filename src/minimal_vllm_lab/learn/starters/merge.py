"""Exercise merge: merge attention over parts of a context in Triton.

The idea. Several SMs of a GPU read one long context, a part each. Or a prefix that many requests
share is read once for all of them, and each request's own tokens separately. The result of a part
is the mean of its values, weighted by the exponentials of the scores, and the logarithm of the
total weight::

    out_i = (sum of 2 ** score * value) / 2 ** lse_i        lse_i = log2(sum of 2 ** score)

    whole = (sum of 2 ** lse_i * out_i) / (sum of 2 ** lse_i)

2 ** lse overflows: a score of 200 is not unusual. As in any softmax, everything is therefore kept
relative to the maximum so far, the *peak*. When the peak rises, the earlier sums are scaled down.
The parts can then be added one by one, in any order.

What to write: ``merge_part``, in Triton's language: ``tl.load(pointers, mask=…, other=0.0)``,
``tl.maximum``, ``tl.exp2``, and ``a[:, None]`` for a column. ``merge_parts`` below is given, and
calls it once per part.

How it is checked: random contexts, split at random, with small and very large scores, compared with
attention over the whole context. Without a GPU it runs in Triton's interpreter.

    minimal-vllm learn check merge
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def merge_part(
    partial_out,
    partial_lse,
    offsets,
    is_row,
    is_real,
    dim,
    peak,
    total,
    mean,
    D: tl.constexpr,
):
    """Add the result of one part to a running weighted mean.

    Args:
        partial_out: pointer to the results of all parts. Element ``dim`` of a row is at
            ``offsets * D + dim``.
        partial_lse: pointer to the lse of all parts. The lse of a row is at ``offsets``.
        offsets: ``[rows]``, indices of this part's rows, one per query head.
        is_row: ``[rows]``, False for rows that are padding.
        is_real: ``[rows, dims]``, False for elements that are padding.
        dim: ``[dims]``: 0, 1, …
        peak: ``[rows]`` float32, the maximum lse so far, -inf at first.
        total: ``[rows]`` float32, the sum of ``2 ** (lse - peak)``.
        mean: ``[rows, dims]`` float32, the sum of ``2 ** (lse - peak) * out``.
        D: number of elements per row.

    Returns:
        ``peak``, ``total`` and ``mean``, updated.
    """
    raise NotImplementedError(
        "load the part's lse [rows] and out [rows, dims]; compute the new peak; multiply total and "
        "mean by exp2(old peak - new peak), and add the part with the weight exp2(lse - new peak)"
    )


@triton.jit
def _merge_all(
    partial_out, partial_lse, out, num_parts, G: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr
):
    row, dim = tl.arange(0, ROWS), tl.arange(0, D)
    is_row = row < G
    is_real = is_row[:, None] & (dim < D)[None, :]
    peak = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mean = tl.zeros([ROWS, D], tl.float32)
    for part in range(num_parts):
        offsets = part * G + row
        peak, total, mean = merge_part(
            partial_out, partial_lse, offsets, is_row, is_real, dim, peak, total, mean, D
        )
    mean = mean / total[:, None]
    tl.store(out + row[:, None] * D + dim[None, :], mean, mask=is_real)


def merge_parts(outs: Tensor, lses: Tensor) -> Tensor:
    """Merge the results of attention over all parts.

    Args:
        outs: ``[parts, G, D]`` float32, the result of each part.
        lses: ``[parts, G]`` float32, the base-2 logarithm of each part's total weight.

    Returns:
        ``[G, D]`` float32.
    """
    num_parts, num_heads, head_dim = outs.shape
    out = torch.empty(num_heads, head_dim, device=outs.device)
    rows = triton.next_power_of_2(num_heads)
    _merge_all[(1,)](outs, lses, out, num_parts, G=num_heads, D=head_dim, ROWS=rows)
    return out
