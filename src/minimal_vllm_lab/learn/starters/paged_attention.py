"""Exercise paged-attention: attention over keys and values that lie in scattered blocks.

The idea. A request's keys and values are cut into blocks, which lie anywhere; its *block table*
says where. Gather them in the order of the text, and it is attention as ever::

    block table of a request with 10 tokens        [7, 2, 5]     block_size 4
    its tokens      0  1  2  3 │ 4  5  6  7 │ 8  9
    are in             block 7 │    block 2 │    block 5, of which two slots are not its own

A layer's keys are one tensor ``[B, K, S, D]``: block, kv head, slot in the block, head dimension.
In a step, request ``r`` has the new tokens ``query_starts[r]`` to ``query_starts[r + 1]`` of ``q``;
they are the last of its ``seq_lens[r]`` tokens. Their own keys and values are in the cache already.

What you have: ``attend`` (the exercise kv-cache, or the engine's), and in ``self`` what the step
is (see ``PagedStep``): ``query_starts [R + 1]``, ``seq_lens [R]``, ``block_tables [R, most
blocks]``, padded with 0.

What to write: ``gather_pages`` and ``MyStep.__call__``. One request after the other, with a
loop, is fine: that is how the engine's reference does it, to which all faster ones are compared.

How it is checked: random batches, compared with attention over contiguous tensors. All memory that
belongs to nobody holds NaN.

    minimal-vllm learn check paged-attention
    minimal-vllm learn run paged-attention
"""

import torch
from torch import Tensor

from minimal_vllm.attention.paged import PagedStep
from minimal_vllm.attention.reference import attend
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.step.batch import Batch


def gather_pages(layer: Tensor, block_table: Tensor, seq_len: int) -> Tensor:
    """The tokens behind a block table: of ``[B, K, S, D]``, ``[seq_len, K, D]``.

    Args:
        layer: all blocks of a layer's keys, or of its values.
        block_table: ``[most blocks]`` int32; what lies behind the request's blocks is padding.
        seq_len: the request's tokens.
    """
    raise NotImplementedError(
        "take ceil(seq_len / block_size) blocks, bring slot before kv head, join the blocks, and "
        "cut off the slots behind seq_len"
    )


class MyStep(PagedStep):
    """Paged attention over the batch of one step."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cache: LayerCache,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """Attend over the cache, causally.

        Args:
            q: ``[T, H, D]``, the new tokens of all requests behind one another.
            k: ``[T, K, D]``, their keys; in the cache already.
            v: ``[T, K, D]``, their values; in the cache already.
            cache: this layer's ``key`` and ``value``, each ``[B, K, S, D]``.
            scale: what the scores are multiplied by.
            window: a token sees so many tokens, itself included; None: all before it.

        Returns:
            ``[T, H, D]`` in ``q``'s dtype.
        """
        raise NotImplementedError(
            "for each request: gather its keys and its values, attend with its rows of q, and put "
            "the result into its rows of a tensor like q"
        )


class MyAttention:
    """Makes the attention of each step; given."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def plan(self, batch: Batch) -> MyStep:
        """Return the attention of a step."""
        return MyStep.from_batch(batch, self._device)
