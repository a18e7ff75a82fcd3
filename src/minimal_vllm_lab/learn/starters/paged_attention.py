"""Exercise paged-attention: compute attention over keys and values in scattered blocks.

The idea. A request's keys and values are stored in blocks that can be anywhere in memory. Its
*block table* lists them. After gathering the blocks in the order of the text, this is plain
attention::

    block table of a request with 10 tokens        [7, 2, 5]     block_size 4
    its tokens      0  1  2  3 │ 4  5  6  7 │ 8  9
    are in             block 7 │    block 2 │    block 5, in which two slots are unused

The keys of a layer are one tensor ``[B, K, S, D]``: block, kv head, slot in the block, head
dimension. In a step, the queries of request ``r`` are the rows ``query_starts[r]`` to
``query_starts[r + 1]`` of ``q`` (exclusive). They belong to the last of its ``seq_lens[r]`` tokens.
Their own keys and values are already in the cache.

What you have: ``attend`` (from the exercise kv-cache, or the engine's), and in ``self`` the
batch of the step (see ``PagedStep``): ``query_starts [R + 1]``, ``seq_lens [R]`` and
``block_tables [R, longest table]``, padded with 0.

What to write: ``gather_pages`` and ``MyStep.__call__``. A loop over the requests is fine: the
engine's reference does the same, and all faster backends are compared with it.

How it is checked: random batches, compared with attention over contiguous tensors. All unused
memory holds NaN.

    minimal-vllm learn check paged-attention
    minimal-vllm learn run paged-attention
"""

import torch
from torch import Tensor

from minimal_vllm.attention.interface import AttentionOptions
from minimal_vllm.attention.paged import PagedStep
from minimal_vllm.attention.reference import attend
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.step.batch import Batch


def gather_pages(layer: Tensor, block_table: Tensor, seq_len: int) -> Tensor:
    """Return the keys or the values of one request as a contiguous tensor.

    Args:
        layer: ``[B, K, S, D]``, all blocks of a layer's keys or values.
        block_table: ``[longest table]`` int32, the request's blocks, followed by padding.
        seq_len: number of tokens of the request.

    Returns:
        ``[seq_len, K, D]``.
    """
    raise NotImplementedError


class MyStep(PagedStep):
    """Paged attention of one step, with a ``__call__`` of your own."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cache: LayerCache,
        options: AttentionOptions,
    ) -> Tensor:
        """Attend to the cached keys and values, with a causal mask.

        Args:
            q: ``[T, H, D]``, the queries of the new tokens of all requests, concatenated.
            k: ``[T, K, D]``, their keys, which are already in the cache.
            v: ``[T, K, D]``, their values, which are already in the cache.
            cache: ``key`` and ``value`` of this layer, each ``[B, K, S, D]``.
            options: ``scale``, the factor of the scores, and ``window``, the number of tokens that
                a token attends to, itself included; None: all.

        Returns:
            ``[T, H, D]`` in the dtype of ``q``.
        """
        raise NotImplementedError


class MyAttention:
    """An attention backend that creates a ``MyStep`` for each step; given."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def plan(self, batch: Batch) -> MyStep:
        """Return the attention of one step."""
        return MyStep.from_batch(batch, self._device)
