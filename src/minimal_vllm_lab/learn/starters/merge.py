"""Exercise merge: attention over a whole context from attention over its parts.

The idea. Many processors read one long context, each a part; or a beginning that many requests
share is read once for all of them, and each one's own end apart. What comes of a part is the mean
of its values, weighted with their exponentials, and how much weight that was, as a logarithm::

    out_i = (sum of 2 ** score * value) / 2 ** lse_i        lse_i = log2(sum of 2 ** score)

    whole = (sum of 2 ** lse_i * out_i) / (sum of 2 ** lse_i)

2 ** lse overflows (a score of 200 is nothing unusual), so, as ever with a softmax, everything is
kept relative to the highest seen so far, the *peak*; when it rises, what was summed before fades.
That way parts come in one by one, in any order.

What to write: ``merge_part``, in Triton's language: ``tl.load(pointers, mask=…, other=0.0)``,
``tl.maximum``, ``tl.exp2``, ``a[:, None]`` for a column. ``merge_parts`` below, which is given,
calls it once for each part.

How it is checked: random contexts, cut anywhere, with small and with very large scores, compared
with attention over all of it at once. Without a GPU it runs in Triton's interpreter.

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
    place,
    is_row,
    is_real,
    dim,
    peak,
    total,
    mean,
    D: tl.constexpr,
):
    """Add one partial result to a running mean.

    Args:
        partial_out: the memory of all parts' results; a row's number ``dim`` is at
            ``place * D + dim``.
        partial_lse: the memory of all parts' lse; a row's is at ``place``.
        place: ``[rows]``: where this part's rows are, one for each query head.
        is_row: ``[rows]``: which of them exist; the rest is padding.
        is_real: ``[rows, dims]``: which of their numbers exist.
        dim: ``[dims]``: 0, 1, …
        peak: ``[rows]`` float32: the highest lse so far, -inf at first.
        total: ``[rows]`` float32: the sum of ``2 ** (lse - peak)``.
        mean: ``[rows, dims]`` float32: the sum of ``2 ** (lse - peak) * out``.
        D: numbers per row.

    Returns:
        ``peak``, ``total`` and ``mean`` with the part in them.
    """
    raise NotImplementedError(
        "load the part's lse [rows] and out [rows, dims]; find the new peak; let total and mean "
        "fade by exp2(old peak - new peak), and add the part with the weight exp2(lse - new peak)"
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
        place = part * G + row
        peak, total, mean = merge_part(
            partial_out, partial_lse, place, is_row, is_real, dim, peak, total, mean, D
        )
    mean = mean / total[:, None]
    tl.store(out + row[:, None] * D + dim[None, :], mean, mask=is_real)


def merge_parts(outs: Tensor, lses: Tensor) -> Tensor:
    """Attention over all parts together.

    Args:
        outs: ``[parts, G, D]`` float32: each part's result.
        lses: ``[parts, G]`` float32: the base-2 logarithm of its weight.

    Returns:
        ``[G, D]``.
    """
    num_parts, num_heads, head_dim = outs.shape
    out = torch.empty(num_heads, head_dim, device=outs.device)
    rows = triton.next_power_of_2(num_heads)
    _merge_all[(1,)](outs, lses, out, num_parts, G=num_heads, D=head_dim, ROWS=rows)
    return out
