"""The interface of attention, which every implementation has."""

from typing import Protocol

from torch import Tensor

from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.step.batch import Batch


class StepAttention(Protocol):
    """Paged attention over the batch of one step, for all layers.

    Whatever depends on the batch alone was computed when the object was made.
    """

    @property
    def slots(self) -> Tensor:
        """``[T]`` int64: each token's slot in the cache, ``block * block_size + offset``."""
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
        """Attend over the cache, causally.

        The keys and values of all tokens of the step are in the cache already, since a request may
        share blocks that another request fills in the same step.

        Args:
            q: ``[T, H, D]``; each key-value head serves ``H / K`` query heads.
            k: ``[T, K, D]``: the step's keys, for kernels that read them in one piece.
            v: ``[T, K, D]``: the step's values, likewise.
            cache: keys and values of the layer.
            scale: factor of the scores.
            window: number of tokens that a token sees, itself included. None: all before it.

        Returns:
            ``[T, H, D]`` in the dtype of ``q``.
        """
        ...


class Attention(Protocol):
    """Makes the attention of each step. All implementations compute the same result."""

    def plan(self, batch: Batch) -> StepAttention:
        """Compute what the layers of a step share, and return the step's attention."""
        ...
