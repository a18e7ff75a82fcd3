"""The interface of attention implementations."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.step.batch import Batch


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """Parameters of a layer's ``softmax(cap(q k^T * scale)) v`` over the keys that tokens see."""

    scale: float
    """Factor of the scores."""
    window: int | None = None
    """Number of tokens that each token attends to, itself included. None: all tokens up to
    itself."""
    softcap: float | None = None
    """Bound of the scores: a score ``s`` becomes ``softcap * tanh(s / softcap)``. None: no bound.
    Source: Gemma 2, https://arxiv.org/abs/2408.00118."""
    sinks: Tensor | None = None
    """``[H]``: a learned score per query head that takes a share of the softmax but has no value,
    so that a head can attend to nothing. It is not capped. None: no sinks. Source: gpt-oss,
    https://arxiv.org/abs/2508.10925."""


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
        options: AttentionOptions,
    ) -> Tensor:
        """Compute causal attention over the cache.

        The keys and values of all tokens of the step must already be in the cache, because a
        request may share blocks that another request fills in the same step.

        Args:
            q: ``[T, H, D]``; each key-value head serves ``H / K`` query heads.
            k: ``[T, K, D]``: the step's keys, for kernels that need them contiguous.
            v: ``[T, K, D]``: the step's values, likewise.
            cache: keys and values of the layer.
            options: the layer's scale, window, softcap and sinks.

        Returns:
            ``[T, H, D]`` in the dtype of ``q``.
        """
        ...


class Attention(Protocol):
    """Factory for each step's attention. All implementations compute the same result."""

    def plan(self, batch: Batch) -> StepAttention:
        """Compute everything that a step's layers share, and return the step's attention.

        Layers with different sliding windows may be in different groups, with block tables of their
        own. Then each group has its own batch and attention.
        """
        ...
