"""Exercise decode-kernel: write the inner loop of a decode kernel in Triton.

The idea. A kernel can't hold all scores of a long context. It loops over the keys in tiles, and
keeps three values per query head: the maximum score so far (``peak``), the sum of the exponentials
(``total``), and the sum of the values weighted with them (``acc``). They are a named tuple,
``Softmax(peak, total, acc)``. When a tile has a higher score, the earlier sums are scaled down
(online softmax: Milakov and Gimelshein, 2018)::

    factor = 2 ** (old peak - new peak)
    total  = total * factor + sum of 2 ** (score - new peak)
    acc    = acc   * factor + sum of 2 ** (score - new peak) * value

The result is ``acc / total``. The base is two because GPUs have an instruction for powers of two;
``scale`` includes the factor log2(e). ``_decode`` below is given. It runs once per request and kv
head, computes the addresses of each tile from the block table, and calls ``take_keys``.

What to write: ``take_keys``, in Triton's language. These functions suffice:

    tl.load(pointers, mask=…, other=0.0)       tl.dot(a, b, input_precision=PRECISION)
    tl.trans(a)                                 tl.dot(a, b, c, input_precision=PRECISION): a b + c
    tl.where(condition, a, b)                   tl.max(a, 1), tl.sum(a, 1): over the keys
    tl.maximum(a, b), tl.exp2(a)                a[:, None]: a column
    a.to(b.dtype): a, converted to the type of b's numbers

Queries, keys and values may be in half precision. Scores and sums are in float32, and ``tl.dot``
takes two factors of one type.

How it is checked: random batches, compared with attention over contiguous tensors. Without a GPU it
runs in Triton's interpreter. All unused memory holds NaN.

    minimal-vllm learn check decode-kernel
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.attention.interface import AttentionOptions
from minimal_vllm.attention.kernels.softmax import Softmax, empty_softmax
from minimal_vllm.attention.paged import PagedStep
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.step.batch import Batch

LOG2_E = 1.4426950408889634
ROWS = 16
"""Minimum number of rows of a product on tensor cores. The query heads are padded to it."""


@triton.jit
def take_keys(
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
):
    """Add a tile of keys and values to a running softmax.

    Args:
        q_tile: ``[rows, dims]``, the queries.
        cache: pointers to the layer's keys, ``cache.key``, and values, ``cache.value``, both of
            the queries' type.
        offsets: ``[keys, dims]``, offsets of the tile from both pointers.
        is_key: ``[keys, dims]`` bool, False for elements that do not exist; load them as zeros.
        visible: ``[rows or 1, keys]`` bool, False for hidden scores, which are -inf. Used if
            ``MASKED``.
        scale: factor for the scores.
        softmax: ``Softmax`` of the earlier keys: ``softmax.peak`` ``[rows]``, -inf at first,
            ``softmax.total`` ``[rows]`` and ``softmax.acc`` ``[rows, dims]``, all float32.
        MASKED: True if some keys may be hidden from some rows.
        MAY_SEE_NONE: True if all keys so far may be hidden from a row; never the case here.
        PRECISION: precision of the matrix products, as in ``tl.dot``.

    Returns:
        ``Softmax(peak, total, acc)`` with the tile added.
    """
    raise NotImplementedError


@triton.jit
def _decode(
    q,
    cache,
    out,
    seq_lens,
    block_tables,
    scale,
    table_stride,
    K: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    S: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Compute attention of one request's new token, for the G query heads of one kv head."""
    head, request = tl.program_id(0), tl.program_id(1)
    end = tl.load(seq_lens + request)
    table = block_tables + request * table_stride
    row, dim = tl.arange(0, ROWS), tl.arange(0, D)
    is_real = (row < G)[:, None] & (dim < D)[None, :]
    q_offsets = (request * K * G + head * G + row)[:, None] * D + dim[None, :]
    q_tile = tl.load(q + q_offsets, mask=is_real, other=0.0)

    softmax = empty_softmax(ROWS, D)
    for tile in range(0, end, KEYS):
        position = tile + tl.arange(0, KEYS)
        exists = position < end
        block = tl.load(table + position // S, mask=exists, other=0).to(tl.int64)
        offsets = ((block * K + head) * (S * D) + (position % S) * D)[:, None] + dim[None, :]
        is_key = exists[:, None] & (dim < D)[None, :]
        softmax = take_keys(
            q_tile, cache, offsets, is_key, exists[None, :], scale, softmax, True, False, "ieee"
        )
    tl.store(out + q_offsets, softmax.acc / softmax.total[:, None], mask=is_real)


class MyStep(PagedStep):
    """Attention of a step in which each request has one new token."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cache: LayerCache,
        options: AttentionOptions,
    ) -> Tensor:
        """Launch the kernel, and return the result, ``[R, H, D]``."""
        _, num_kv_heads, block_size, head_dim = cache.key.shape
        out = torch.empty_like(q)
        _decode[(num_kv_heads, len(q))](
            q,
            cache,
            out,
            self.seq_lens,
            self.block_tables,
            options.scale * LOG2_E,
            self.block_tables.stride(0),
            K=num_kv_heads,
            G=q.shape[1] // num_kv_heads,
            D=head_dim,
            S=block_size,
            ROWS=ROWS,
            KEYS=32,
        )
        return out


class MyAttention:
    """An attention backend that creates a ``MyStep`` for each step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def plan(self, batch: Batch) -> MyStep:
        """Return the attention of one step."""
        return MyStep.from_batch(batch, self._device)
