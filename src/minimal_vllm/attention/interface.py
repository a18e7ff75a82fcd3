"""The interface of attention implementations."""

from typing import Protocol

from torch import Tensor

from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.step.batch import Batch


class StepAttention(Protocol):
    """Paged attention over the batch of one step, called once per layer.

    Everything that depends only on the batch was computed when the object was made.
    """

    @property
    def slots(self) -> Tensor:
        """Cache slot of each token, ``block * block_size + offset``: ``[T]`` int64."""
        ...

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cache: LayerCache,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """Compute causal attention over the cache.

        The keys and values of all tokens of the step must already be in the cache, because a
        request may share blocks that another request fills in the same step.

        Args:
            q: ``[T, H, D]``; each key-value head serves ``H / K`` query heads.
            k: ``[T, K, D]``: the step's keys, for kernels that need them contiguous.
            v: ``[T, K, D]``: the step's values, likewise.
            cache: keys and values of the layer.
            scale: factor of the scores.
            window: number of tokens that each token attends to, itself included. None: all tokens
                up to itself.

        Returns:
            ``[T, H, D]`` in the dtype of ``q``.
        """
        ...


class Attention(Protocol):
    """Factory for each step's attention. All implementations compute the same result."""

    def plan(self, batch: Batch) -> StepAttention:
        """Compute everything that a step's layers share, and return the step's attention."""
        ...
