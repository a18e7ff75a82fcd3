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

from minimal_vllm.attention.kernels.softmax import Partials, Softmax, empty_softmax


@triton.jit
def merge_part(partials, index, is_row, softmax, D: tl.constexpr):
    """Add the result of one part to a running weighted sum.

    Args:
        partials: pointers to the results of all parts, ``partials.out``, and to their lse,
            ``partials.lse``. Element ``dim`` of a row is at ``partials.out + index * D + dim``. The
            lse of a row is at ``partials.lse + index``.
        index: ``[rows]``, indices of this part's rows, one per query head.
        is_row: ``[rows]`` bool, False for rows that are padding.
        softmax: ``Softmax`` of three float32 tensors: ``softmax.peak`` ``[rows]``, the maximum lse
            so far, -inf at first; ``softmax.total`` ``[rows]``, the sum of ``2 ** (lse - peak)``;
            ``softmax.acc`` ``[rows, dims]``, the sum of ``2 ** (lse - peak) * out``.
        D: number of elements per row.

    Returns:
        ``Softmax(peak, total, acc)`` with the part added.
    """
    raise NotImplementedError


@triton.jit
def _merge_all(partials, out, num_parts, G: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr):
    row, dim = tl.arange(0, ROWS), tl.arange(0, D)
    is_row = row < G
    softmax = empty_softmax(ROWS, D)
    for part in range(num_parts):
        softmax = merge_part(partials, part * G + row, is_row, softmax, D)
    mean = softmax.acc / softmax.total[:, None]
    tl.store(out + row[:, None] * D + dim[None, :], mean, mask=is_row[:, None])


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
    _merge_all[(1,)](Partials(outs, lses), out, num_parts, G=num_heads, D=head_dim, ROWS=rows)
    return out
